"""Shifted patch tokenization (SPT): patches that see half a patch beyond their border.

"Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), section 3.2, and aanna0701/SPT_LSA_ViT.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.norm import LayerNorm
from vitjax.layers.patches import patchify
from vitjax.layers.precision import BinaryProjection

# Where each further view looks, in shifts (down, across) from a pixel; the order is that of its channels.
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_CARDINAL = ((0, -1), (0, 1), (-1, 0), (1, 0))
DIRECTIONS = {"diagonal": _DIAGONAL, "cardinal": _CARDINAL, "all": _CARDINAL + _DIAGONAL}
SPT = ("none", *DIRECTIONS)


def shifts_of(patch_size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Pixels (down, across) by which views are shifted: `ratio` patches, rounded down."""
    shifts = int(patch_size[0] * ratio), int(patch_size[1] * ratio)
    if not 0 < ratio <= 1 or min(shifts) < 1:
        raise UserError(
            f"spt_ratio={ratio} of a patch of {patch_size[0]}x{patch_size[1]} pixels is a shift of "
            f"{max(0, min(shifts))}, which shows nothing new: the shift must be at least one pixel and at "
            "most one patch. Take a larger spt_ratio or patch, or spt='none'."
        )
    return shifts


def shifted_views(x, shifts: tuple[int, int], directions: str = "diagonal"):
    """Puts shifted copies of `[B, H, W, C]` behind its channels: `[B, H, W, (1 + V) C]`.

    What comes in from outside is zero (after normalisation, the mean colour). V is 4, or 8 for `all`.
    """
    down, across = shifts
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (down, down), (across, across), (0, 0)))
    views = [
        padded[:, down * (1 + i) : down * (1 + i) + height, across * (1 + j) : across * (1 + j) + width]
        for i, j in DIRECTIONS[directions]
    ]
    return jnp.concatenate([x, *views], axis=-1)


class ShiftedPatchTokenization(nn.Module):
    """Shifted views, cut into patches, normalised and embedded: `[B, H, W, C] -> [B, H/p, W/q, D]`.

    A patch embedding on images; on maps of tokens, with patches of 2, a pooling. Parameters: `norm` over
    the (1 + V) p q C numbers of a patch, in the order row, column, view, channel, and `projection` with
    `kernel` `[(1 + V) p q C, D]` and `bias` `[D]`.

    With a `precision` the projection is a `BinaryProjection`, around which goes the mean of the patch itself,
    without shifted views. An embedding of pixels should have none.
    """

    width: int
    patch_size: tuple[int, int]
    directions: str = "diagonal"
    ratio: float = 0.5
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    precision: str = "float"

    @nn.compact
    def __call__(self, x):
        """Embeds float images or maps `[B, H, W, C]` as `[B, H/p, W/q, width]`."""
        views, channels = 1 + len(DIRECTIONS[self.directions]), x.shape[-1]
        made_for = self.get_variable("params", "norm")
        if made_for is not None and len(made_for["scale"]) != views * math.prod(self.patch_size) * channels:
            raise UserError(
                f"The model was made for other images than these of {channels} channels: prepare images "
                "everywhere alike; 'decode' gives 3."
            )
        x = shifted_views(x, shifts_of(self.patch_size, self.ratio), self.directions)
        x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(patchify(x, self.patch_size))
        if self.precision != "float":
            fields = (self.width, self.precision, self.initialisation.patch(x.shape[-1])[0], self.dtype)
            unshifted = x.reshape(*x.shape[:3], -1, views, channels)[..., 0, :]
            return BinaryProjection(*fields, name="projection")(x, unshifted.mean(-2))
        kernel, bias = _Projection(self.width, self.initialisation, name="projection")(x.shape[-1])
        return affine(x, kernel, bias)


class _Projection(nn.Module):
    """`kernel` `[N, D]` and `bias` `[D]`, drawn as those of a patch embedding are."""

    width: int
    initialisation: Initialisation

    @nn.compact
    def __call__(self, size):
        kernel, bias = self.initialisation.patch(size)
        return self.param("kernel", kernel, (size, self.width)), self.param("bias", bias, (self.width,))
