"""Pooling and repeating of tokens that lie row by row on a grid, and of their channels, without parameters.

The shortcuts of BinaryViT (arXiv 2306.16678) are made of these.
"""

import jax.numpy as jnp
from jax import lax

Grid = tuple[int, int]  # (height, width) in tokens


def pool_blocks(x, grid: Grid, size: int):
    """Mean of each block of size x size tokens: `[B, h w, C] -> [B, h w / size^2, C]`.

    `size` divides both sides of the grid.
    """
    batch, _, channels = x.shape
    height, width = grid[0] // size, grid[1] // size
    blocks = x.reshape(batch, height, size, width, size, channels)
    return blocks.mean((2, 4)).reshape(batch, height * width, channels)


def repeat_blocks(x, grid: Grid, size: int):
    """Each token size x size times, the nearest neighbour: `[B, h w / size^2, C] -> [B, h w, C]`.

    `grid` is that of the result; `size` divides both sides of it.
    """
    batch, _, channels = x.shape
    height, width = grid[0] // size, grid[1] // size
    blocks = jnp.broadcast_to(
        x.reshape(batch, height, 1, width, 1, channels), (batch, height, size, width, size, channels)
    )
    return blocks.reshape(batch, grid[0] * grid[1], channels)


def pool_along(x, grid: Grid, size: int, axis: int):
    """Mean over windows of `size` tokens of a column (`axis` 0) or of a row (1): `[B, h w, C]` as before.

    Each token is the centre of its window, `size` is odd. Beyond the border there are zeros, which count: the
    divisor is always `size`.
    """
    batch, tokens, channels = x.shape
    grid_of = x.reshape(batch, *grid, channels)
    border = [(0, 0)] * 4
    border[1 + axis] = (size // 2, size // 2)
    padded = jnp.pad(grid_of, border)
    length = grid[axis]
    # Slices fuse into one pass over the tokens; XLA's CPU backend runs windows one by one.
    total = sum(lax.slice_in_dim(padded, i, i + length, axis=1 + axis) for i in range(size))
    return (total / size).reshape(batch, tokens, channels)


def to_channels(x, channels: int):
    """The shortcut around a layer from C to `channels` channels: `[..., C] -> [..., channels]`.

    More of them: all C, in their order, as often as they fit. Fewer: the mean of each group of adjacent ones.
    One number divides the other.
    """
    have = x.shape[-1]
    if channels > have:
        return jnp.tile(x, channels // have)
    if channels < have:
        return x.reshape(*x.shape[:-1], channels, have // channels).mean(-1)
    return x
