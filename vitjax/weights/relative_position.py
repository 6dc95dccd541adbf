"""Fits tables of relative positions (Swin) to a model with other windows."""

import math
from collections.abc import Mapping

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.position import resize

_TABLE = "/relative_position_bias"


def is_table(name: str) -> bool:
    """Whether it names a parameter `[offsets, num_heads]` of ours that holds a bias for every offset."""
    return name.endswith(_TABLE)


def fit(
    params: dict[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], method: str, path: str
) -> list[str]:
    """Resizes tables of other windows to the model's, in place; returns notes for the report.

    A table is a map of (2w - 1) x (2w - 1) offsets for windows of w x w. It is resized like a position
    embedding, as the official code does it for fine-tuning.

    Raises:
      UserError: windows differ, and those of the file or of the model are not square.
    """
    resized: dict[str, int] = {}
    for name in (name for name in params if is_table(name) and params[name].shape != shapes[name]):
        old, new = (window(entries) for entries in (len(params[name]), shapes[name][0]))
        if old is None or new is None:
            raise UserError(
                f"{name} in {path!r} has {len(params[name])} relative positions, the model {shapes[name][0]},"
                " and only tables of square windows can be resized. Make the model with the windows of the"
                f" file, or leave the tables out with dont_load=('.*{_TABLE}',)."
            )
        params[name] = resize(params[name][None], (2 * new - 1,) * 2, method=method)[0]
        size = f"{old}x{old} resized to {new}x{new}"
        resized[size] = resized.get(size, 0) + 1
    return [
        f"relative positions: windows of {size} ({method}), {count} tables" for size, count in resized.items()
    ]


def window(entries: int) -> int | None:
    """The side of the square window whose table has so many entries; None if there is none."""
    side = math.isqrt(entries)
    return (side + 1) // 2 if side * side == entries and side % 2 else None
