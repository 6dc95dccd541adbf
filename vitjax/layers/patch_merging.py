"""Patch merging: the pooling between the stages of Swin."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import Dense
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.norm import LayerNorm
from vitjax.layers.precision import BinaryProjection


class PatchMerging(nn.Module):
    """Joins 2x2 tokens each, normalises and projects them: `[B, h, w, C] -> [B, h/2, w/2, width]`.

    "Swin Transformer" (arXiv 2103.14030), section 3.1. Parameters: `norm` over the 4C numbers, and
    `projection` with a `kernel` `[4C, width]` and no bias. In the official code, and here, the four lie
    column by column: the one below the first comes before the one to its right.

    With a `precision` the projection is a `BinaryProjection`, around which goes the mean of the four tokens.
    """

    width: int
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    precision: str = "float"

    @nn.compact
    def __call__(self, x):
        """Merges a map of tokens. UserError: a side of it is odd."""
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise UserError(
                f"Patch merging halves a map of tokens, but this one is {height}x{width}: both sides must be "
                "even. Change the crop in the preprocessing string or the model's patch_size."
            )
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        if self.precision != "float":
            four = x.reshape(*x.shape[:-1], 4, channels)
            fields = (self.width, self.precision, self.initialisation.kernel, self.dtype)
            return BinaryProjection(*fields, name="projection")(x, four.mean(-2))
        project = Dense(
            self.width, self.initialisation.kernel, dtype=self.dtype, use_bias=False, name="projection"
        )
        return project(x).astype(jnp.float32)
