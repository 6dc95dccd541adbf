"""The feed-forward half of a transformer block."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.precision import linear

GELU = ("tanh", "erf")
ACTIVATIONS = ("gelu", "relu")


class MlpBlock(nn.Module):
    """Dense, GELU or ReLU, dropout, Dense: `[..., D] -> [..., D]`.

    `gelu="tanh"` is the approximation Flax takes by default and the AugReg models
    were trained with; `"erf"` is PyTorch's and timm's.

    With a `precision` (`layers.precision`) both layers are `BinaryProjection`s, whose RPReLUs take the
    place of the activation.
    """

    mlp_dim: int
    dropout: float = 0.0
    gelu: str = "tanh"
    dtype: DTypeLike = jnp.float32  # of the products
    initialisation: Initialisation = AUGREG
    precision: str = "float"
    activation: str = dataclasses.field(default="gelu", kw_only=True)  # one of `ACTIVATIONS`

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Applies the block; `train` switches dropout on."""
        width = x.shape[-1]
        x = self._dense(width, self.mlp_dim, "Dense_0")(x)
        if self.precision == "float" and self.activation == "relu":
            x = jax.nn.relu(x)
        elif self.precision == "float":
            x = jax.nn.gelu(x.astype(jnp.float32), approximate=self.gelu == "tanh")
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return self._dense(self.mlp_dim, width, "Dense_1")(x)

    def _dense(self, fan_in, features, name):
        bias = self.initialisation.bias_of(fan_in, self.initialisation.mlp_bias)
        return linear(features, self.precision, self.initialisation.kernel, bias, self.dtype, name=name)
