"""Ops that rearrange an example on the host: pick, pad, join, look up. None knows about pixels."""

import os

import numpy as np

from vitjax.data.pp import on_key, register, value_of
from vitjax.errors import UserError, nearest


@register("concat", deterministic=True)
def concat(inkeys, outkey=None, axis=-1):
    """Joins the arrays of `inkeys` along `axis` into `outkey`, the first of `inkeys` unless told."""
    inkeys = _keys(inkeys)

    def op(example, rng):
        joined = np.concatenate([value_of(example, key) for key in inkeys], axis=axis)
        return {**example, outkey or inkeys[0]: joined}

    return op


@register("flatten", deterministic=True)
def flatten(keys=None):
    """Replaces nested dicts and lists by their leaves, named `outer/inner`; all keys unless told."""
    wanted = None if keys is None else _keys(keys)

    def op(example, rng):
        flat = {}
        for key, value in example.items():
            flat.update(_leaves(key, value) if wanted is None or key in wanted else {key: value})
        return flat

    return op


def _leaves(name, value):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for part, inner in items for key, leaf in _leaves(f"{name}/{part}", inner).items()}


@register("reshape", deterministic=True)
@on_key("image")
def reshape(new_shape):
    """Reshapes an array; one entry of `new_shape` may be -1."""
    return lambda array, rng: np.reshape(array, new_shape)


@register("squeeze_last_dim", deterministic=True)
@on_key("image")
def squeeze_last_dim():
    """Drops the last axis, which must have length 1."""
    return lambda array, rng: np.squeeze(array, axis=-1)


_PLACES = ("before", "after", "both")


@register("pad_to_shape", deterministic=True)
@on_key("image")
def pad_to_shape(shape, pad_value=0, where="after"):
    """Pads an array to `shape`.

    Args:
        shape: the length of each axis; None leaves an axis as it is.
        pad_value: what to pad with.
        where: "before", "after" or "both". With "both", the odd one goes after.
    """
    if where not in _PLACES:
        raise UserError(f"where={where!r} must be one of {', '.join(_PLACES)}.{nearest(str(where), _PLACES)}")

    def apply(array, rng):
        lacking = [0 if to is None else to - n for n, to in zip(array.shape, shape, strict=False)]
        if array.ndim != len(shape) or min(lacking, default=0) < 0:
            raise UserError(f"An array of shape {list(array.shape)} cannot be padded to {list(shape)}.")
        before = [{"before": n, "after": 0, "both": n // 2}[where] for n in lacking]
        return np.pad(
            array, [(b, n - b) for b, n in zip(before, lacking, strict=True)], constant_values=pad_value
        )

    return apply


@register("setdefault", deterministic=True)
def setdefault(key, value):
    """Sets `key` to `value` where it is missing or an empty array."""
    default = np.asarray(value)
    if default.dtype.kind in "if":  # the widths that devices use
        default = default.astype(np.int32 if default.dtype.kind == "i" else np.float32)

    def op(example, rng):
        found = example.get(key, default)
        if isinstance(found, np.ndarray) and found.size == 0:
            found = np.broadcast_to(default.astype(found.dtype), [n or 1 for n in found.shape])
        return {**example, key: found}

    return op


@register("lookup", deterministic=True)
@on_key("image")
def lookup(mapping, npzkey="fnames", sep=None):
    """Maps a string (or an array of them) to a number, int32; -1 where it is not known.

    Args:
        mapping: a file. From an .npz, the array `npzkey` gives the strings, numbered in order. Else a text
            file: one string a line, numbered in order, or with `sep`, a string and its number.
        npzkey: see `mapping`.
        sep: see `mapping`.
    """
    numbers = _read_mapping(mapping, npzkey, sep)

    def find(word):
        return numbers.get(word.decode() if isinstance(word, bytes) else str(word), -1)

    def apply(words, rng):
        if isinstance(words, np.ndarray | list | tuple):
            words = np.asarray(words)
            return np.asarray([find(word) for word in words.ravel().tolist()], np.int32).reshape(words.shape)
        return np.int32(find(words))

    return apply


def _read_mapping(path: str, npzkey: str, sep: str | None) -> dict[str, int]:
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                words = arrays[npzkey].tolist()
            return {w.decode() if isinstance(w, bytes) else str(w): i for i, w in enumerate(words)}
        with open(os.fspath(path), encoding="utf-8") as file:
            lines = file.read().splitlines()
        if sep is None:
            return {line: i for i, line in enumerate(lines)}
        pairs = (line.split(sep) for line in lines)
        return {word: int(number) for word, number in pairs}
    except (OSError, KeyError, ValueError) as err:
        raise UserError(f"Cannot read mapping={path!r} (npzkey={npzkey!r}, sep={sep!r}): {err}.") from err


@register("choice")
def choice(n="single", key=None, fewer_ok=False, inkey=None, outkey=None):
    """Picks the same random entries, along the first axis, of one or several arrays.

    Args:
        n: "single" picks one entry and drops the axis; a number picks that many; [min, max] draws how many.
            Several keep their order, and none is picked twice.
        key: an array or a list of arrays, replaced by what was picked.
        fewer_ok: whether an array may have fewer entries than wanted, which then are all picked.
        inkey: like `key`, but the result goes to `outkey`.
        outkey: as many as `inkey`; `{key}` in a name stands for the name in `inkey`.
    """
    keys = _key_pairs(key, inkey, outkey)
    low, high = _bounds(n)

    def op(example, rng):
        entries = _number_of_entries(example, keys)
        if entries < (1 if n == "single" else 0 if fewer_ok else low):
            raise UserError(f"choice wants {n!r} entries of {keys[0][0]!r}, which has {entries}.")
        if n == "single":
            index = int(rng.integers(entries))
        else:
            count = int(rng.integers(low, high + 1))
            index = np.sort(rng.permutation(entries)[:count])
        return {**example, **{target: example[source][index] for source, target in keys}}

    return op


def _bounds(n) -> tuple[int, int]:
    match n:
        case "single":
            return 1, 1
        case int() if n >= 0:
            return n, n
        case [int(low), int(high)] if 0 <= low <= high:
            return low, high
    raise UserError(f"n={n!r} must be 'single', a number of entries, or [min, max].")


def _keys(keys) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys)


def _key_pairs(key, inkey, outkey) -> list[tuple[str, str]]:
    if not (inkey or key) or not (outkey or key):
        raise UserError("Tell it which array to pick from: key=..., or both inkey=... and outkey=....")
    sources, targets = _keys(inkey or key), _keys(outkey or key)
    if len(sources) != len(targets):
        raise UserError(f"inkey={inkey!r} and outkey={outkey!r} must name equally many keys.")
    return [(source, target.format(key=source)) for source, target in zip(sources, targets, strict=True)]


def _number_of_entries(example, keys) -> int:
    shapes = {source: np.shape(value_of(example, source)) for source, _ in keys}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) > 1 or () in lengths:
        raise UserError(
            f"It takes arrays with equally many entries along their first axis, but the shapes are {shapes}."
        )
    return lengths.pop()[0]
