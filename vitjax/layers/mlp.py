"""The feed-forward half of a transformer block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.dense import Dense

GELU = ("tanh", "erf")


class MlpBlock(nn.Module):
    """Dense, GELU, dropout, Dense: `[..., D] -> [..., D]`.

    Kernels are xavier-uniform, biases normal with deviation 1e-6 (big_vision,
    vision_transformer). `gelu="tanh"` is the approximation Flax takes by default and
    the AugReg models were trained with; `"erf"` is PyTorch's and timm's.
    """

    mlp_dim: int
    dropout: float = 0.0
    gelu: str = "tanh"
    dtype: DTypeLike = jnp.float32  # of the products

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Applies the block; `train` switches dropout on."""
        width = x.shape[-1]
        x = self._dense(self.mlp_dim, "Dense_0")(x)
        x = jax.nn.gelu(x.astype(jnp.float32), approximate=self.gelu == "tanh")
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return self._dense(width, "Dense_1")(x)

    def _dense(self, features, name):
        return Dense(
            features,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
            dtype=self.dtype,
            name=name,
        )
