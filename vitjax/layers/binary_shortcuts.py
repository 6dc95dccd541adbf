"""What goes around a binary layer: real numbers made to fit another shape, without weights.

A binary layer passes little on, so each has a shortcut past it. Where a layer widens, narrows or moves to a
coarser grid, these do ("BinaryViT", arXiv 2306.16678, section 3). Tokens lie row by row on a grid `(h, w)`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vitjax.errors import UserError

Grid = tuple[int, int]


def tile_channels(x, features: int):
    """Repeats channels end to end: output c of `[..., features]` is input c mod C of `[..., C]`.

    Raises:
      UserError: `features` is no multiple of C.
    """
    times = _times(features, x.shape[-1], "widens from", x.shape[-1], features)
    return jnp.tile(x, (1,) * (x.ndim - 1) + (times,))


def mean_of_neighbours(x, features: int):
    """Averages groups of channels that stand side by side: `[..., e * features]` to `[..., features]`.

    This is no inverse of `tile_channels`, whose copies stand C apart; so it is published.

    Raises:
      UserError: the number of channels is no multiple of `features`.
    """
    times = _times(x.shape[-1], features, "narrows from", x.shape[-1], features)
    return x.reshape(*x.shape[:-1], features, times).mean(-1)


def _times(large, small, verb, before, after):
    times, rest = divmod(large, small)
    if rest or not times:
        raise UserError(
            f"A shortcut past a binary layer that {verb} {before} to {after} channels needs one number to be"
            " a multiple of the other: change the model's width or mlp_dim (of a pyramid, of its stages)."
        )
    return times


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def mean_along(tokens, grid: Grid, axis: int, size: int):
    """Averages each token of `[B, h w, C]` with its neighbours in a window of odd `size`: `[B, h w, C]`.

    `axis` 0 looks up and down, 1 to the left and right. Beyond the grid are zeros, which count. It is its own
    transpose, and so its own gradient.
    """
    x = tokens.reshape(len(tokens), *grid, -1)
    window, around = [1] * 4, [(0, 0)] * 4
    window[1 + axis], around[1 + axis] = size, (size // 2, size // 2)
    # A window and no sum of slices: into each slice XLA:CPU would fuse what comes before, all residual blocks
    # of a stage, which cost a third of a training step.
    total = lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, window, (1,) * 4, around)
    return (total / size).reshape(tokens.shape)


def _mean_along_forward(tokens, grid: Grid, axis: int, size: int):
    return mean_along(tokens, grid, axis, size), None


def _mean_along_backward(grid: Grid, axis: int, size: int, _, cotangent):
    # XLA's own gradient of a window is slow on a CPU.
    return (mean_along(cotangent, grid, axis, size),)


mean_along.defvjp(_mean_along_forward, _mean_along_backward)


def mean_of_windows(x, size: int):
    """Averages size x size windows side by side: `[B, H, W, C]` to `[B, H / size, W / size, C]`.

    Pixels left over on the right and below are in no window, as in PyTorch's pooling.
    """
    batch, height, width, channels = x.shape
    h, w = height // size, width // size
    x = x[:, : h * size, : w * size].reshape(batch, h, size, w, size, channels)
    return x.mean((2, 4))


def reduce_tokens(tokens, grid: Grid, size: int):
    """Averages windows of tokens, `[B, h w, C]` to `[B, h w / size^2, C]`.

    Raises:
      UserError: a side of the grid is no multiple of `size`.
    """
    if grid[0] % size or grid[1] % size:
        raise UserError(
            f"Keys and values are averaged over {size}x{size} tokens, but the grid is {grid[0]}x{grid[1]}:"
            " both sides must be multiples. Change the crop in the preprocessing string or the model's"
            " reductions."
        )
    x = mean_of_windows(tokens.reshape(len(tokens), *grid, -1), size)
    return x.reshape(len(x), -1, x.shape[-1])


def repeat_tokens(tokens, grid: Grid, size: int):
    """Gives every token of `[B, h w / size^2, C]` to the whole window it stands for: `[B, h w, C]`.

    `grid` `(h, w)` is the fine one.
    """
    batch, _, channels = tokens.shape
    h, w = grid[0] // size, grid[1] // size
    x = tokens.reshape(batch, h, 1, w, 1, channels)
    return jnp.broadcast_to(x, (batch, h, size, w, size, channels)).reshape(batch, -1, channels)
