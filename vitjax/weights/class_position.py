"""Fits a file's position embedding to a model: the own positions of tokens in front, and the grid.

AugReg adds positions after the class token is put in front, so the embedding has an entry for it; big_vision
puts the class token in front afterwards, and has none. The first is the second with the entry added to the
class token, which is the same function: file and model may differ in this. The same goes for the distillation
token of DeiT, which stands behind the class token, and only where there is one.
"""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.position import resize

Grid = tuple[int, int]


# Tokens in front of the patches, by our names of them, and what messages call them.
TOKENS = {"cls": "class token", "dist": "distillation token"}


def is_positions(name: str) -> bool:
    """Whether that is our name of a position embedding `[1, N, D]`; `_{s}` ends that of a later stage."""
    return re.fullmatch(r"pos_embedding(_\d+)?", name) is not None


class Fitted(NamedTuple):
    """What became of a position embedding."""

    posemb: np.ndarray  # [1, N, D] of the model
    to_tokens: dict[str, np.ndarray]  # [1, 1, D], to be added to the tokens of these names
    notes: list[str]


def fit(
    posemb: np.ndarray,
    tokens: int,
    *,
    in_model: Collection[str],
    in_file: Collection[str],
    grid: Grid | None,
    square: bool,
    method: str,
    path: str,
) -> Fitted:
    """Fits `posemb` `[1, M, D]` of a file to a model whose embedding has `tokens` entries.

    Args:
      posemb: as it is in the file.
      tokens: N of the model's `[1, N, D]`.
      in_model: the model's parameters by name, among which its tokens are.
      in_file: the same of the file.
      grid: (height, width) of the model in patches; None: it is square, or nothing changes.
      square: whether grids of such files are square, as those of all published files; if not, as many entries
        as the model has are those of the same grid.
      method: how to resize the grid, see `position.resize`.
      path: of the file, for messages.

    Raises:
      UserError: a grid must be resized that is not square, or is not given and not square.
    """
    of_model, of_file = _prefixes(in_model), _prefixes(in_file)
    found = _square(posemb.shape[1], of_file)
    if posemb.shape[1] == tokens and (grid is None or not square or found is None):
        return Fitted(posemb, {}, [])
    new, new_prefix = _model_grid(tokens, grid, of_model)
    if found is None:
        raise UserError(
            f"The position embedding of {path!r} has {posemb.shape[1]} entries: neither a square grid nor one"
            f" and {_named(of_file)}, and only square grids can be resized. Leave it out with"
            " dont_load=('pos_embedding',), or make the model with the grid of the file."
        )
    old, prefix = found
    front, posemb = np.split(posemb, [prefix], axis=1)
    notes, to_tokens = [], {}
    for i, (token, called) in enumerate(TOKENS.items()):
        if new_prefix <= i < prefix:
            to_tokens[token] = front[:, i : i + 1]
            has = token in in_model
            where = f"added to the {called}" if has else f"dropped, as the model has no {called}"
            notes.append(f"position of the {called}: {where}")
        elif prefix <= i < new_prefix:
            front = np.concatenate([front, np.zeros_like(posemb[:, :1])], axis=1)
            notes.append(f"position of the {called}: zero, as the file has none")
    posemb = np.concatenate([front[:, :new_prefix], posemb], axis=1)
    if old != new:
        posemb = resize(posemb, new, prefix=new_prefix, old_grid=old, method=method)
        notes.append(f"position embedding: grid {_by(old)} resized to {_by(new)} ({method})")
    return Fitted(posemb, to_tokens, notes)


def _prefixes(names: Collection[str]) -> tuple[int, int]:
    """How many entries may stand before the grid: none, or one for each token in front."""
    return 0, 2 if "dist" in names else 1


def _named(prefixes: tuple[int, int]) -> str:
    return " and ".join(f"a {called}" for called in list(TOKENS.values())[: prefixes[1]])


def _model_grid(tokens: int, grid: Grid | None, prefixes: tuple[int, int]) -> tuple[Grid, int]:
    """The model's grid and how many entries stand before it."""
    if grid is None:
        if found := _square(tokens, prefixes):
            return found
        raise UserError(
            f"The model's position embedding has {tokens} entries, which is no square grid: give"
            " grid=(height, width), in patches."
        )
    prefix = tokens - grid[0] * grid[1]
    if prefix not in prefixes:
        raise UserError(
            f"grid={tuple(grid)} is {grid[0] * grid[1]} patches, but the model's position embedding has"
            f" {tokens} entries: as many, or {prefixes[1]} more for {_named(prefixes)}, would fit."
        )
    return (grid[0], grid[1]), prefix


def _square(entries: int, prefixes: tuple[int, int]) -> tuple[Grid, int] | None:
    """The square grid of as many entries, less those before it. No number is both."""
    for prefix in prefixes:
        side = math.isqrt(max(entries - prefix, 0))
        if side and side * side == entries - prefix:
            return (side, side), prefix
    return None


def _by(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
