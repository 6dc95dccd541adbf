"""Weights of any known file, as the parameters of a model."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.weights import class_position, families, merge, reactnet_names, relative_position
from vitjax.weights.archive import CHECKPOINT, open_archive
from vitjax.weights.position import METHODS
from vitjax.weights.resolve import resolve
from vitjax.weights.stored import Archive, Stored, shown
from vitjax.weights.tables import heads_in
from vitjax.weights.tree import flatten, is_stacked, nest


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Parameters, and what was done to have them.

    `params` is nested like the model's own and holds float32 numpy arrays; what `dont_load` left out is not
    in it. Batch statistics, if they were asked for, are in it, too. `report` is text of a few lines: the
    family, counts, and all that was converted, resized, folded or left out.
    """

    params: dict[str, Any]
    report: str


def load(
    source: str | pathlib.Path,
    abstract_params: Mapping[str, Any],
    *,
    dont_load: str | Sequence[str] = (),
    grid: tuple[int, int] | None = None,
    posemb: str = "auto",
    params_key: str = "params",
) -> Loaded:
    """Loads weights into the form of a model's parameters; every name and shape must fit.

    Args:
      source: a path, or a name that `resolve` finds a file for; behind it, after a colon, the sub-tree
        that is meant: `model.npz:img`, `runs/a:ema_params`. What kind of file it is and whose
        names it has is told by what is in it.
      abstract_params: the model's parameters, nested; arrays or `jax.ShapeDtypeStruct`, blocks in a loop or
        stacked by scan. Names and shapes count. Of a model with batch statistics: joined with those, see
        `variables.join`.
      dont_load: patterns for whole names, `head/.*`. What they match keeps its initial value, or is dropped
        if only the file has it. One that matches nothing is an error.
      grid: (height, width) of the model in patches; needed where it is not square.
      posemb: how to resize the position embedding, and tables of relative positions, a method of
        `position.resize`; `auto`: as the code base does from which the file comes.
      params_key: which subtree of a vitjax checkpoint: `params`, `ema_params`.

    Raises:
      UserError: the file is missing, damaged or of an unknown kind; an entry is missing, extra, of another
        shape, no float, or not finite (all of them are listed); or an argument is wrong.
    """
    valid = ("auto", *METHODS)
    if posemb not in valid:
        raise UserError(f"posemb={posemb!r} is none of {', '.join(valid)}.{nearest(posemb, valid)}")
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(abstract_params).items()}
    path, behind = locate(str(source))
    key, subtree = key_and_subtree(path, behind, params_key)
    patterns = (dont_load,) if isinstance(dont_load, str) else tuple(dont_load)
    with open_archive(path, key) as archive:
        weights = families.recognise(archive, subtree)
        method = weights.family.posemb if posemb == "auto" else posemb
        return _load(archive, weights, shapes, patterns, grid, method)


def shapes(source: str | pathlib.Path, abstract_params: Mapping[str, Any]) -> dict[str, merge.Shape]:
    """The shapes that parameters have in a file, by our names; a file of weights is not read for it.

    What the file says of parameters that the model lacks is here too. Blocks stand as the file has them, in a
    loop or stacked. Arguments and errors are those of `load`.
    """
    ours = {name: tuple(leaf.shape) for name, leaf in flatten(abstract_params).items()}
    path, behind = locate(str(source))
    key, subtree = key_and_subtree(path, behind)
    with open_archive(path, key) as archive:
        weights = families.recognise(archive, subtree)
        moves, _ = weights.family.translate(weights.entries, heads_in(ours))
        return {
            target: shape
            for move in moves
            for target, shape in zip(
                move.targets, merge.shapes_of(move, weights.entries[move.entry].shape), strict=False
            )
        }


def locate(source: str) -> tuple[pathlib.Path, str]:
    """Splits `file:sub/tree` and finds the file. UserError if there is none."""
    head, colon, behind = source.rpartition(":")
    # The colon of `augreg:vit_b16`, of `https://`, of `https://host:8080/file` is another one.
    of_name = re.fullmatch(r"\w*", head) and not pathlib.Path(head).exists()
    of_host = re.fullmatch(r"\w+://[^/]*", head)
    if not colon or of_name or of_host or behind.startswith("//") or pathlib.Path(source).exists():
        return resolve(source), ""
    return resolve(head), behind.strip("/")


def key_and_subtree(path: pathlib.Path, behind: str, params_key: str = "params") -> tuple[str, str]:
    """What stands behind the colon: of a folder of checkpoints, the key; of a file, the sub-tree."""
    if not path.is_dir():
        return params_key, behind
    key, _, subtree = behind.partition("/")
    return key or params_key, subtree


def _load(
    archive: Archive,
    weights: families.Weights,
    shapes: Mapping[str, merge.Shape],
    dont_load: Sequence[str],
    grid: tuple[int, int] | None,
    method: str,
) -> Loaded:
    entries = weights.entries
    moves, unknown = weights.family.translate(entries, heads_in(shapes))
    stacked = any(is_stacked(target) for move in moves for target in move.targets)
    if stacked and not any(map(is_stacked, shapes)):
        moves = [merge.unstacked(move, entries[move.entry].shape) for move in moves]
    wanted = merge.slots(shapes, stacked_in_file=stacked and any(map(is_stacked, shapes)))
    found = merge.fit(moves, unknown, entries, wanted, dont_load)
    described = f"{archive.path!r} ({archive.kind}, {weights.described})"
    if error := merge.told(found, described):
        in_file = [target for move in moves for target in move.targets]
        raise _other_binary_network(described, in_file, shapes) or error
    _check_compressed(archive, found, entries, shapes)
    params, bad = merge.read(found, entries, wanted, shapes)
    notes = list(weights.notes)
    in_file = {target for move in moves for target in move.targets}
    notes += _fit_positions(archive, params, shapes, in_file, grid, method)
    notes += relative_position.fit(params, shapes, method, archive.path)
    if bad:
        more = f" and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise UserError(
            f"{archive.path!r} holds numbers that are not finite in float32: {', '.join(bad[:20])}{more}. The"
            " training that made it went wrong, or the file is damaged."
        )
    return Loaded(
        nest({name: params[name] for name in shapes if name in params}),
        _report(archive, weights, found, stacked, shapes, notes),
    )


def _other_binary_network(
    described: str, in_file: Collection[str], in_model: Collection[str]
) -> UserError | None:
    """The error for a ReActNet or Bi-Real Net of another layout or depth than the model, if it is that."""
    there, here = reactnet_names.layout(in_file), reactnet_names.layout(in_model)
    if not there or not here or there == here:
        return None
    return UserError(
        f"{described} is a {there}, and the model is a {here}. The second step of training starts from the"
        " first step's network: give model.name and its sizes as they were there."
    )


def _check_compressed(
    archive: Archive, found: merge.Fit, entries: Mapping[str, Stored], shapes: Mapping[str, merge.Shape]
) -> None:
    """Refuses a packed position embedding that is larger than the whole model.

    All other entries have the model's own shapes by now, and what is not packed lies in the file as large as
    it says.
    """
    model = 4 * sum(map(math.prod, shapes.values()))
    for move in found.moves:
        stored = entries[move.entry]
        if stored.compressed and stored.nbytes > 2 * model:
            raise UserError(
                f"{move.entry!r} in {archive.path!r} declares {stored.nbytes:,} bytes, packed; the whole"
                f" model has {model:,}. It was not read."
            )


def _fit_positions(
    archive: Archive,
    params: dict[str, np.ndarray],
    shapes: Mapping[str, merge.Shape],
    in_file: Collection[str],
    grid: tuple[int, int] | None,
    method: str,
) -> list[str]:
    """Fits the position embeddings to the model, in place; returns notes for the report."""
    notes = []
    for name in filter(class_position.is_positions, list(params)):
        stage = int(name.partition("embedding_")[2] or 0)  # each halves the grid of the one before
        fitted = class_position.fit(
            params[name],
            shapes[name][1],
            in_model=shapes,
            in_file=in_file,
            grid=None if grid is None else (grid[0] >> stage, grid[1] >> stage),
            square=archive.kind != CHECKPOINT,
            method=method,
            path=archive.path,
        )
        params[name] = fitted.posemb
        for token, position in fitted.to_tokens.items():
            if token in params and position.any():
                params[token] = params[token] + position
        notes += fitted.notes
    return notes


def _report(
    archive: Archive,
    weights: families.Weights,
    found: merge.Fit,
    stacked: bool,
    shapes: Mapping[str, merge.Shape],
    notes: Sequence[str],
) -> str:
    used = [weights.entries[move.entry] for move in found.moves]
    numbers = sum(math.prod(stored.shape) for stored in used)
    lines = [
        f"{archive.path}: {archive.kind}, {weights.described};"
        f" {len(used)} of {len(weights.entries)} entries, {numbers:,} numbers"
    ]
    if stacked != any(map(is_stacked, shapes)):
        lines.append("blocks: " + ("taken apart" if stacked else "stacked"))
    if kinds := sorted({str(stored.dtype) for stored in used} - {"float32"}):
        lines.append(f"made float32 of {', '.join(kinds)}")
    if squeezed := [stored for stored in used if stored.shape[:3] == (1, 1, 1) and len(stored.shape) == 4]:
        lines.append(f"squeezed: {len(squeezed)} arrays of GroupNorm, such as {shown(squeezed[0].shape)}")
    lines += notes
    if dropped := [name for name in found.dropped if name not in found.kept]:
        lines.append(f"dropped, by dont_load: {', '.join(dropped)}")
    if found.kept:
        lines.append(f"left as initialised, by dont_load: {', '.join(found.kept)}")
    return "\n".join(lines)
