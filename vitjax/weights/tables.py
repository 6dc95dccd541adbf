"""What becomes of each array of a file: the moves from their names and layouts to ours."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vitjax.weights.templates import Templates, fill
from vitjax.weights.timm_names import Table


class Move(NamedTuple):
    """One array of the file and the parameters it holds, by our names."""

    entry: str
    targets: tuple[str, ...]
    into: Callable[[np.ndarray], Sequence[np.ndarray]]  # views of the array in our layouts
    same: bool = False  # the array is the parameter as it is

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The parameters' shapes, for an array of this shape, none of which is read. ValueError: not so."""
        return [part.shape for part in self.into(np.broadcast_to(np.float32(0), shape))]


def as_it_is(entry: str, target: str) -> Move:
    """The parameter lies in the file as it lies here."""
    return Move(entry, (target,), lambda array: [array], same=True)


def moves(
    table: Table, names: Iterable[str], num_heads: Callable[[str], int]
) -> tuple[list[Move], list[str]]:
    """The moves by a table, and those names that it has no place for.

    Args:
      table: templates of their names to layouts and our names (`timm_names.ALL`).
      names: of the file's arrays.
      num_heads: the number of heads of the attention that one of our names belongs to.
    """
    templates = Templates(table)
    found, unknown = [], []
    for name in names:
        row = templates.find(name)
        if row is None:
            unknown.append(name)
            continue
        theirs, numbers = row
        layout, ours = table[theirs]
        targets = tuple(fill(path, numbers) for path in ((ours,) if isinstance(ours, str) else ours))
        heads = num_heads(targets[0])
        found.append(Move(name, targets, lambda x, layout=layout, heads=heads: layout.into(x, heads)))
    return found, unknown


def heads_of(num_heads: int | Sequence[int]) -> Callable[[str], int]:
    """Looks up the number of heads by our name of a parameter: one for all, or one for each `stage_{i}`."""
    if isinstance(num_heads, int):
        return lambda name: num_heads

    def of_stage(name: str) -> int:
        stage = re.match(r"stage_(\d+)/", name)
        return num_heads[int(stage[1])] if stage and int(stage[1]) < len(num_heads) else 1

    return of_stage


def heads_in(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[str], int]:
    """Looks up the number of heads by the shapes of the target, where kernels of queries are `[D, H, Dh]`."""
    queries = {name.removesuffix("/query/kernel"): s for name, s in shapes.items() if s and len(s) >= 3}
    queries = {name: shape[-2] for name, shape in queries.items() if f"{name}/query/kernel" in shapes}

    def num_heads(name: str) -> int:
        own = name.rsplit("/", 2)[0]
        return queries.get(own, queries.get(re.sub(r"encoderblock_\d+", "encoderblock", own), 1))

    return num_heads
