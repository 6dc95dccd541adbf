"""The safetensors format: eight bytes of length, a JSON header, raw numbers.

The `safetensors` library maps the file and copies out of the map, and both count as this process's memory:
twice the file. Here one tensor at a time is read to where it stays. The rules of the format are enforced as
the library does (no overlap, no holes), but by name.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.stored import BFLOAT16, Archive, Stored, printable

_HEADER = 4 << 20  # bytes; that of ViT-G with 48 blocks has 80 thousand
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@contextlib.contextmanager
def open_safetensors(path: str) -> Iterator[Archive]:
    """Opens a safetensors file; the arrays can be read until the context ends.

    Raises:
      UserError: it is truncated, or its header breaks the format's rules.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(_HEADER, size - 8):
            raise UserError(
                f"{path!r} declares a header of {length:,} bytes, but has {size - 8:,} (and"
                f" {_HEADER:,} is the most that is read): it is truncated or no safetensors file."
            )
        header = _parse(path, file.read(length))
        header.pop("__metadata__", None)
        spans = {name: _span(path, name, about) for name, about in header.items()}
        _check_layout(path, spans, size - 8 - length)
        entries = {
            name: Stored(name, shape, dtype, _reader(file, 8 + length + begin, path, name))
            for name, (begin, _, shape, dtype) in sorted(spans.items(), key=lambda span: span[1][0])
        }
        yield Archive(path, "safetensors", entries)


def _parse(path: str, text: bytes) -> dict[str, Any]:
    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path!r} holds {printable(twice)} twice, so nobody can say which is meant.")
        return found

    try:
        header = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path!r} has a safetensors header that is no JSON: it is damaged.") from e
    if not isinstance(header, dict):
        raise UserError(f"{path!r} has a safetensors header that is no JSON object: it is damaged.")
    return header


def _span(path: str, name: str, about: Any) -> tuple[int, int, tuple[int, ...], np.dtype]:
    """Where a tensor begins and ends among the numbers, its shape and its dtype; each plausible by itself."""
    where = f"{printable(name)} in {path!r}"
    if not isinstance(about, dict):
        raise UserError(f"{where} is described by no JSON object: the file is damaged.")
    shape, offsets, kind = about.get("shape"), about.get("data_offsets"), about.get("dtype")
    natural = all(
        isinstance(xs, list) and all(type(x) is int and x >= 0 for x in xs) for xs in (shape, offsets)
    )
    if not natural or shape is None or offsets is None or len(offsets) != 2:
        raise UserError(
            f"{where} declares shape {str(shape)[:80]} and data_offsets {str(offsets)[:80]}: the file is"
            " damaged, or made to do harm."
        )
    if not isinstance(kind, str) or kind not in DTYPES:
        raise UserError(f"{where} has dtype {printable(str(kind))}, which is none of {', '.join(DTYPES)}.")
    begin, end = offsets
    if math.prod(shape) * DTYPES[kind].itemsize != end - begin:
        raise UserError(
            f"{where} declares {kind}{str(shape)[:80]} in {end - begin:,} bytes, which is not its size: the"
            " file is damaged, or made to do harm."
        )
    return begin, end, tuple(shape), DTYPES[kind]


def _check_layout(path: str, spans: dict[str, tuple], size: int) -> None:
    """Refuses overlaps, holes, and tensors outside of the file."""
    at = 0
    for name, (begin, end, *_) in sorted(spans.items(), key=lambda span: span[1][:2]):
        if end > size:
            raise UserError(
                f"{printable(name)} in {path!r} ends at byte {end:,} of {size:,}: the file is truncated."
                " Fetch it again."
            )
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise UserError(f"{printable(name)} in {path!r} {what}: the file is damaged or made to do harm.")
        at = end
    if at != size:
        raise UserError(f"{path!r} has {size - at:,} bytes that belong to no tensor: it is damaged.")


def _reader(file: BinaryIO, start: int, path: str, name: str):
    def fill(buffer):
        file.seek(start)
        if file.readinto(buffer) != len(buffer):  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"{printable(name)} in {path!r} ends too early: the file is truncated.")

    return fill
