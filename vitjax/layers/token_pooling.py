"""Pooling of tokens by shifted patch tokenization: a quarter of the patches, wider ones.

"Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), section 3.2, and aanna0701/SPT_LSA_ViT.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import Dense
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.shifted_patches import ShiftedPatchTokenization


class ShiftedPatchPooling(nn.Module):
    """Pools tokens on a grid with shifted patches of 2: `[B, T + h w, C] -> [B, T + h w / 4, width]`.

    The grid's tokens go through a `ShiftedPatchTokenization`, whose parameters `norm` and `projection` are
    those of this module; at the default ratio views are shifted by one token. The T tokens in front, T = 1
    for a class token, share a linear layer `cls` (`kernel` `[C, width]`, `bias` `[width]`), without a norm.
    """

    width: int
    directions: str = "diagonal"
    ratio: float = 0.5
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG

    @nn.compact
    def __call__(self, tokens, grid: tuple[int, int]):
        """Pools `tokens`, the last h w of which lie row by row on `grid` `(h, w)`.

        Raises:
          UserError: a side of the grid is odd.
          ValueError: there are fewer tokens than the grid has places.
        """
        height, width = grid
        in_front = tokens.shape[1] - height * width
        if in_front < 0:
            raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {height}x{width}.")
        if height % 2 or width % 2:
            raise UserError(
                f"Pooling with shifted patches halves a grid of tokens, but this one is {height}x{width}: "
                "both sides must be even. Change the crop in the preprocessing string or the model's "
                "patch_size, or pool without SPT (spt_pooling=False)."
            )
        front, patches = jnp.split(tokens, [in_front], axis=1)
        pooled = self._pool(patches.reshape(len(patches), height, width, -1))
        pooled = pooled.reshape(len(pooled), -1, self.width)
        if not in_front:
            return pooled
        cls = Dense(self.width, self.initialisation.kernel, dtype=self.dtype, name="cls")
        return jnp.concatenate([cls(front), pooled], axis=1)

    def _pool(self, x):
        tokenization = ShiftedPatchTokenization(
            self.width,
            (2, 2),
            self.directions,
            self.ratio,
            self.norm_epsilon,
            self.dtype,
            self.initialisation,
            name="patches",
        )
        nn.share_scope(self, tokenization)  # its parameters without a level of their own
        return tokenization(x)
