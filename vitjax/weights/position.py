"""Learned position embeddings for another grid of patches, resampled as each code base does it."""

import math
from collections.abc import Sequence

import numpy as np

from vitjax.errors import UserError, nearest

# method: (kernel, whether the kernel widens when the grid shrinks)
METHODS = {
    "corners": ("linear", False),  # corners stay corners: AugReg and big_vision (scipy.ndimage.zoom, order 1)
    "bicubic": (-0.75, False),  # official DeiT and Hugging Face: PyTorch's bicubic
    "bicubic_aa": (-0.5, True),  # timm's loader: PyTorch's bicubic with antialiasing, that is, Pillow's
    "bilinear": ("linear", False),
    "bilinear_aa": ("linear", True),
}


def resize(
    posemb: np.ndarray,
    new_grid: Sequence[int],
    *,
    prefix: int = 0,
    old_grid: Sequence[int] | None = None,
    method: str = "corners",
) -> np.ndarray:
    """Resamples a position embedding `[1, prefix + h*w, D]` to `[1, prefix + new_h*new_w, D]`.

    Args:
      posemb: floats, positions row by row.
      new_grid: (height, width) in patches.
      prefix: how many entries in front belong to no patch (class token, distillation token); they are kept.
      old_grid: the (height, width) that `posemb` was made for; square unless said.
      method: how to interpolate along each axis. `corners`: linear; the outermost positions stay where they
        are. `bicubic`, `bilinear`: positions are the patches' centres, the border value goes on outside.
        `bicubic_aa`, `bilinear_aa`: the same, the kernel as wide as the coarser grid, normalised at borders.

    Computed in float64, returned in the dtype of `posemb`. One of the right grid comes back as it is.
    For a few pairs of sizes (28 to 14, 24 to 22) scipy's own rounding steps over the last position, and the
    references get zeros in the last row and column; here they are the corners, as for all other sizes.
    Raises UserError where shape, grids and method do not go together.
    """
    posemb = np.asarray(posemb)
    if method not in METHODS:
        raise UserError(
            f"posemb={method!r} is no way to resize positions.{nearest(method, METHODS)} "
            f"Valid are: {', '.join(METHODS)}."
        )
    if posemb.ndim != 3 or posemb.shape[0] != 1 or posemb.shape[1] <= prefix:
        raise UserError(
            f"A position embedding of shape {posemb.shape} cannot be resized: "
            f"it must be [1, positions, width] with more than {prefix} positions."
        )
    positions = posemb.shape[1] - prefix
    old, new = old_grid or _square(positions, prefix), tuple(new_grid)
    for name, grid in (("old", tuple(old)), ("new", new)):
        if len(grid) != 2 or min(grid) < 1:
            raise UserError(f"The {name} grid of a position embedding is {grid}; it must be (height, width).")
    if math.prod(old) != positions:
        raise UserError(f"A position embedding of {positions} positions has no grid of {old[0]} x {old[1]}.")
    if tuple(old) == new:
        return posemb
    grid = posemb[0, prefix:].reshape(*old, -1).astype(np.float64)
    rows, columns = (_interpolation(a, b, method) for a, b in zip(old, new, strict=True))
    grid = np.einsum("ia,jb,abd->ijd", rows, columns, grid, optimize=True)
    grid = grid.reshape(1, math.prod(new), -1).astype(posemb.dtype)
    return np.concatenate([posemb[:, :prefix], grid], axis=1)


def _square(positions: int, prefix: int) -> tuple[int, int]:
    side = math.isqrt(positions)
    if side * side != positions:
        raise UserError(
            f"A position embedding of {positions} positions (and {prefix} in front of them) is not square: "
            "say which (height, width) it has."
        )
    return side, side


def _interpolation(old: int, new: int, method: str) -> np.ndarray:
    """The `[new, old]` matrix that takes values at `old` points of a line to `new` points of it."""
    kernel, antialias = METHODS[method]
    if method == "corners":
        at = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        at = (np.arange(new) + 0.5) * (old / new) - 0.5
    if antialias:
        stretch = max(1.0, old / new)
        weights = _kernel(kernel, (np.arange(old) - at[:, None]) / stretch)
        return weights / weights.sum(axis=1, keepdims=True)
    weights = _kernel(kernel, np.arange(-2, old + 2) - at[:, None])  # two more on either side: kernels' reach
    inside = weights[:, 2:-2]
    inside[:, 0] += weights[:, :2].sum(axis=1)
    inside[:, -1] += weights[:, -2:].sum(axis=1)
    return inside


def _kernel(kind: str | float, x: np.ndarray) -> np.ndarray:
    """Weight of a sample at distance `x`: the triangle, or Keys' cubic with the given slope at 1."""
    x = np.abs(x)
    if isinstance(kind, str):
        return np.maximum(0.0, 1.0 - x)
    near = ((kind + 2) * x - (kind + 3)) * x * x + 1
    far = kind * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
