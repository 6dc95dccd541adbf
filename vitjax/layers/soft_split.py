"""Soft splits: a feature map cut into overlapping windows, each of which becomes a token (T2T-ViT).

"Tokens-to-Token ViT" (arXiv 2101.11986), section 3.1, and yitu-opensource/T2T-ViT.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from vitjax.errors import UserError


class Split(NamedTuple):
    """The windows of one split, in places of the map it cuts: side, distance, and border of zeros."""

    kernel: int
    stride: int
    padding: int


def splits_of(given: int | Sequence[Sequence[int]]) -> tuple[Split, ...]:
    """Reads a model's field `splits`: (kernel, stride, padding) of each, or how many of 3/2/1 there are."""
    triples = ((3, 2, 1),) * given if isinstance(given, int) else given
    if not triples or not all(map(_is_triple, triples)):
        raise UserError(
            f"splits={given!r} is neither a positive number of soft splits nor three whole numbers, (kernel, "
            "stride, padding), for each of them, such as ((7, 4, 2), (3, 2, 1), (3, 2, 1))."
        )
    splits = tuple(Split(*triple) for triple in triples)
    for split in splits:
        if split.stride < 1 or not split.kernel - split.stride <= 2 * split.padding < split.kernel:
            raise UserError(
                f"splits={given!r}: windows of {split.kernel}, {split.stride} apart, with a border of "
                f"{split.padding} do not make a map of 1/{split.stride} of the side. The border must be at "
                "least half of what windows overlap, and less than half a window."
            )
    return splits


def _is_triple(given) -> bool:
    return isinstance(given, list | tuple) and len(given) == 3 and all(isinstance(n, int) for n in given)


def stride_of(splits: Sequence[Split]) -> int:
    """Pixels from one token to the next after all splits."""
    return math.prod(split.stride for split in splits)


def refuse_other_sizes(height: int, width: int, splits: Sequence[Split]) -> None:
    """Raises a `UserError` if some split cannot halve, or quarter, the map that an image leads to."""
    step = stride_of(splits)
    if height % step or width % step:
        raise UserError(
            f"An image of {height}x{width} pixels cannot be split softly into tokens {step} pixels apart: "
            f"the nearest size that can is {max(round(height / step), 1) * step}x"
            f"{max(round(width / step), 1) * step}. Change the crop in the preprocessing string or the "
            "model's splits."
        )


def soft_split(x, split: Split):
    """Cuts `[B, H, W, C]` into overlapping windows `[B, H/s, W/s, C*k*k]`, with zeros around the map.

    Inside a window the order is channel, row, column, as PyTorch's `Unfold` has it. Sides must be multiples
    of the stride. Windows are put together from blocks as wide as the stride, by slices without gaps: those,
    and their gradient, are copies, where a convolution with ones and zeros would be arithmetic.
    """
    batch, height, width, _ = x.shape
    rows = _windows(_windows(x, 1, split), 3, split)  # [B, h, k, w, k, C]
    windows = rows.transpose(0, 1, 3, 5, 2, 4)
    return windows.reshape(batch, height // split.stride, width // split.stride, -1)


def _windows(x, axis: int, split: Split):
    """Puts an axis `k` behind `axis`, whose N places become the N/s windows over them."""
    kernel, stride, padding = split
    count, reach = x.shape[axis] // stride, -(-kernel // stride)  # of a window in blocks
    borders = [(0, 0, 0)] * x.ndim
    borders[axis] = (padding, (reach - 1) * stride - padding, 0)
    padded = lax.pad(x, jnp.zeros((), x.dtype), borders)
    blocks = padded.reshape(*x.shape[:axis], count + reach - 1, stride, *x.shape[axis + 1 :])
    parts = [lax.slice_in_dim(blocks, i, i + count, axis=axis) for i in range(reach)]
    return lax.slice_in_dim(jnp.concatenate(parts, axis + 1), 0, kernel, axis=axis + 1)
