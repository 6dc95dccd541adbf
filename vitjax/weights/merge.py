"""The strict merge of a file's arrays into a model's parameters.

All shapes are compared before any number is read, so that a file that does not fit costs nothing, and every
array that is read is as large as the model says.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.weights.class_position import is_positions
from vitjax.weights.relative_position import is_table
from vitjax.weights.stored import Stored, is_float, printable, shown
from vitjax.weights.tables import Move
from vitjax.weights.tree import is_stacked, of_block

Shape = tuple[int, ...]
_TOLD = 20  # entries named in one error
_DEEPEST = 1000  # blocks


class Slot(NamedTuple):
    """Where a parameter goes: a leaf of the model, or one block's part of a leaf that is stacked."""

    leaf: str
    block: int | None
    shape: Shape


def slots(shapes: Mapping[str, Shape], *, stacked_in_file: bool) -> dict[str, Slot]:
    """Every parameter of the model, by the name it has in the file's form: loop, or stacked blocks.

    Args:
      shapes: of the model's leaves.
      stacked_in_file: whether blocks are stacked there. If only they are, `unstacked` takes them apart.
    """
    out: dict[str, Slot] = {}
    for name, shape in shapes.items():
        if is_stacked(name) and not stacked_in_file:
            out |= {of_block(name, i): Slot(name, i, shape[1:]) for i in range(shape[0])}
        else:
            out[name] = Slot(name, None, shape)
    return out


def unstacked(move: Move, shape: Shape) -> Move:
    """A move out of stacked blocks as one into the blocks of a loop."""
    if not is_stacked(move.targets[0]):
        return move
    depth = shape[0] if shape else 0
    if depth > _DEEPEST:  # an absurd shape, to be refused under its own name
        return move
    names = tuple(of_block(target, i) for target in move.targets for i in range(depth))
    return Move(move.entry, names, lambda array: [part for whole in move.into(array) for part in whole])


@dataclasses.dataclass
class Fit:
    """How a file's arrays fit a model; what does not is listed."""

    moves: list[Move] = dataclasses.field(default_factory=list)  # those whose arrays are wanted
    dropped: list[str] = dataclasses.field(default_factory=list)  # names in the file, by dont_load
    kept: list[str] = dataclasses.field(default_factory=list)  # leaves of the model that keep their values
    missing: dict[str, str] = dataclasses.field(default_factory=dict)  # name -> what is said of it
    extra: dict[str, str] = dataclasses.field(default_factory=dict)
    other: dict[str, str] = dataclasses.field(default_factory=dict)


def fit(
    moves: Sequence[Move],
    unknown: Collection[str],
    entries: Mapping[str, Stored],
    wanted: Mapping[str, Slot],
    dont_load: Sequence[str],
) -> Fit:
    """Holds what a file provides against what the model wants, by name, shape and dtype.

    Args:
      moves: of the file's arrays.
      unknown: names in the file that its family's table has no place for.
      entries: the file's arrays.
      wanted: the model's parameters, see `slots`.
      dont_load: patterns that match whole names, of the model or of the file.

    Raises:
      UserError: a pattern is no regular expression, or matches nothing.
    """
    patterns = {pattern: _compiled(pattern) for pattern in dont_load}
    used: set[str] = set()

    def left_out(*names: str) -> bool:
        matching = {text for text, pattern in patterns.items() if any(map(pattern.fullmatch, names))}
        used.update(matching)
        return bool(matching)

    skip = {name: left_out(slot.leaf) for name, slot in wanted.items()}
    found = Fit(kept=sorted({wanted[name].leaf for name, skipped in skip.items() if skipped}))
    provided: set[str] = set()
    for move in moves:
        stored = entries[move.entry]
        hit = False
        for target, shape in zip(move.targets, shapes_of(move, stored.shape), strict=False):
            slot = wanted.get(target)
            if slot is None:
                if left_out(target):
                    found.dropped.append(target)
                else:
                    found.extra[target] = f"{target} {shown(shape)}{_if_other(move.entry, target)}"
                continue
            if target in provided:
                found.extra[target] = f"{target}, by {printable(move.entry)} as well"
            provided.add(target)
            if skip[target]:
                found.dropped.append(target)
            elif not is_float(stored.dtype):
                found.other[target] = f"{target} is {stored.dtype}, no float"
            elif not _fits(target, shape, slot.shape):
                found.other[target] = f"{target} is {shown(shape)} there, {shown(slot.shape)} here"
            else:
                hit = True
        if hit:
            found.moves.append(move)
    for name in unknown:
        if left_out(name):
            found.dropped.append(name)
        else:
            found.extra[name] = f"{printable(name)} {shown(entries[name].shape)}"
    found.missing = {
        name: f"{name} {shown(slot.shape)}{nearest(name, found.extra)}"
        for name, slot in wanted.items()
        if name not in provided and not skip[name]
    }
    if idle := [pattern for pattern in patterns if pattern not in used]:
        names = [*{slot.leaf: None for slot in wanted.values()}, *found.extra]
        raise UserError(
            f"dont_load={idle[0]!r} matches no parameter of the model and nothing in the file."
            f"{nearest(idle[0], names)} Patterns are regular expressions that match whole names, such as"
            " 'head/.*'."
        )
    return found


def told(found: Fit, described: str) -> UserError | None:
    """All that does not fit, as one error; None if everything does."""
    lists = {
        "missing in the file": found.missing,
        "only in the file": found.extra,
        "different": found.other,
    }
    if not any(lists.values()):
        return None
    most = _TOLD // sum(map(bool, lists.values()))
    parts = []
    for what, names in lists.items():
        if names:
            some = "; ".join(list(names.values())[:most])
            more = f"; and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{len(names)} {what}: {some}{more}.")
    return UserError(f"{described} does not fit the model. {' '.join(parts)} {_remedy(found)}")


def _remedy(found: Fit) -> str:
    names = [*found.missing, *found.extra, *found.other]
    patterns = []
    for name in names:
        top, slash, _ = name.partition("/")
        pattern = f"{re.escape(top)}/.*" if slash else re.escape(name)
        if pattern not in patterns:
            patterns.append(pattern)
    if any(pattern.startswith("Transformer") for pattern in patterns) or len(patterns) > 4:
        return (
            "Is it the right model, of the same size? What should be left out all the same, name with"
            " dont_load, regular expressions for whole names."
        )
    option = ", ".join(map(repr, patterns)) + ("," if len(patterns) == 1 else "")
    return (
        f"To go on without: dont_load=({option}) drops what only the file has, and leaves the model's own"
        " parameters of these names as they were initialised."
    )


def read(
    found: Fit, entries: Mapping[str, Stored], wanted: Mapping[str, Slot], shapes: Mapping[str, Shape]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads what fits, as float32; also the names of those that hold a NaN or an infinity."""
    params: dict[str, np.ndarray] = {}
    bad = []
    for move in found.moves:
        stored = entries[move.entry]
        if move.same and (slot := wanted[move.targets[0]]).block is None and _plain(stored, slot.shape):
            params[slot.leaf] = stored.read()
            if not _finite(params[slot.leaf]):
                bad.append(move.targets[0])
            continue
        array = None
        for i, target in enumerate(move.targets):
            slot = wanted.get(target)
            if slot is None or target in found.dropped:
                continue
            if slot.leaf not in params:
                # Positions may be of another number than the model's; they are fitted afterwards.
                positions = is_positions(slot.leaf) or is_table(slot.leaf)
                shape = move.shapes(stored.shape)[i] if positions else shapes[slot.leaf]
                params[slot.leaf] = np.empty(shape, np.float32)
            to = params[slot.leaf] if slot.block is None else params[slot.leaf][slot.block]
            if move.same and _plain(stored, slot.shape):
                stored.read(out=to)
            else:
                array = stored.read() if array is None else array
                with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is told so
                    _copy(to, move.into(array)[i].reshape(to.shape))
            if not _finite(to):
                bad.append(target)
    return params, bad


def _copy(to: np.ndarray, array: np.ndarray) -> None:
    """`to[...] = array`. A PyTorch layout is a matrix turned over, which OpenCV does ten times faster."""
    if array.dtype == to.dtype == np.float32 and array.ndim > 1 and min(array.shape[0], array.shape[-1]) > 8:
        for axis, other in ((0, -1), (-1, 0)):
            straight = np.moveaxis(array, axis, other)
            if straight.flags.c_contiguous and to.flags.c_contiguous:
                matrix = straight.reshape((-1, straight.shape[-1]) if other else (len(straight), -1))
                cv2.transpose(matrix, to.reshape(matrix.shape[::-1]))
                return
    to[...] = array


def _plain(stored: Stored, shape: Shape) -> bool:
    return stored.dtype == np.float32 and stored.shape == shape and not stored.fortran


def _finite(array: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        # One NaN or infinity makes the sum one; the slow look is for sums that overflow by themselves.
        return bool(np.isfinite(array.sum(dtype=np.float32))) or bool(np.isfinite(array).all())


def shapes_of(move: Move, shape: Shape) -> Sequence[Shape]:
    """Shapes of what a move makes of an array; where it cannot, the array's own."""
    try:
        return move.shapes(shape)
    except (ValueError, IndexError, TypeError):  # not even of the right rank
        return [shape] * len(move.targets)


def _fits(target: str, there: Shape, here: Shape) -> bool:
    if is_positions(target):  # their number may differ
        return len(there) == 3 and there[0] == 1 and there[1] > 0 and there[2:] == here[2:]
    if is_table(target):
        return len(there) == 2 and there[0] > 0 and there[1:] == here[1:]
    if there[:-1] == (1, 1, 1) and len(here) == 1:  # GroupNorm in files from before Linen
        return there[3:] == here
    return there == here


def _if_other(entry: str, target: str) -> str:
    return "" if entry == target else f" ({printable(entry)})"


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as e:
        raise UserError(f"dont_load={pattern!r} is no regular expression: {e}.") from e
