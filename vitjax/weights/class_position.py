"""Fits a file's position embedding to a model: the class token's own position, and the grid.

AugReg adds positions after the class token is put in front, so the embedding has an entry for it; big_vision
puts the class token in front afterwards, and has none. The first is the second with the entry added to the
class token, which is the same function: file and model may differ in this.
"""

import math
from typing import NamedTuple

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.position import resize

Grid = tuple[int, int]


class Fitted(NamedTuple):
    """What became of a position embedding."""

    posemb: np.ndarray  # [1, N, D] of the model
    to_class: np.ndarray | None  # [1, 1, D], to be added to the class token
    notes: list[str]


def fit(
    posemb: np.ndarray,
    tokens: int,
    *,
    has_class: bool,
    grid: Grid | None,
    square: bool,
    method: str,
    path: str,
) -> Fitted:
    """Fits `posemb` `[1, M, D]` of a file to a model whose embedding has `tokens` entries.

    Args:
      posemb: as it is in the file.
      tokens: N of the model's `[1, N, D]`.
      has_class: whether the model has a class token.
      grid: (height, width) of the model in patches; None: it is square, or nothing changes.
      square: whether grids of such files are square, as those of all published files; if not, as many entries
        as the model has are those of the same grid.
      method: how to resize the grid, see `position.resize`.
      path: of the file, for messages.

    Raises:
      UserError: a grid must be resized that is not square, or is not given and not square.
    """
    if posemb.shape[1] == tokens and (grid is None or not square or _square(posemb.shape[1]) is None):
        return Fitted(posemb, None, [])
    new, new_prefix = _model_grid(tokens, grid)
    found = _square(posemb.shape[1])
    if found is None:
        raise UserError(
            f"The position embedding of {path!r} has {posemb.shape[1]} entries: neither a square grid nor one"
            " and a class token, and only square grids can be resized. Leave it out with"
            " dont_load=('pos_embedding',), or make the model with the grid of the file."
        )
    old, prefix = found
    notes, to_class = [], None
    if prefix and not new_prefix:
        to_class, posemb = posemb[:, :1], posemb[:, 1:]
        where = "added to the class token" if has_class else "dropped, as the model has no class token"
        notes.append(f"position of the class token: {where}")
    elif new_prefix and not prefix:
        posemb = np.concatenate([np.zeros_like(posemb[:, :1]), posemb], axis=1)
        notes.append("position of the class token: zero, as the file has none")
    if old != new:
        posemb = resize(posemb, new, prefix=new_prefix, old_grid=old, method=method)
        notes.append(f"position embedding: grid {_by(old)} resized to {_by(new)} ({method})")
    return Fitted(posemb, to_class, notes)


def _model_grid(tokens: int, grid: Grid | None) -> tuple[Grid, int]:
    """The model's grid and how many entries stand before it."""
    if grid is None:
        if found := _square(tokens):
            return found
        raise UserError(
            f"The model's position embedding has {tokens} entries, which is no square grid: give"
            " grid=(height, width), in patches."
        )
    prefix = tokens - grid[0] * grid[1]
    if prefix not in (0, 1):
        raise UserError(
            f"grid={tuple(grid)} is {grid[0] * grid[1]} patches, but the model's position embedding has"
            f" {tokens} entries: as many, or one more for the class token, would fit."
        )
    return (grid[0], grid[1]), prefix


def _square(entries: int) -> tuple[Grid, int] | None:
    """The square grid of as many entries, or of one less (then 1 stands before it). No number is both."""
    for prefix in (0, 1):
        side = math.isqrt(entries - prefix)
        if side * side == entries - prefix:
            return (side, side), prefix
    return None


def _by(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
