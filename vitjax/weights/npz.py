"""NumPy's npz files, member by member and without pickle.

NumPy's own reader makes each array through a buffer of bytes and believes what a header declares. Here every
header is held against the size of its member before anything is allocated, and the numbers go from the file
straight to where they stay. The checksum of each member is still compared.
"""

import contextlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from vitjax.errors import UserError
from vitjax.weights.stored import BFLOAT16, Archive, Stored, printable

_HEADER = 10_000  # longest header of a member, in bytes: numpy's own bound
_CHUNK = 1 << 20  # read, then checksum, while still in the cache


@contextlib.contextmanager
def open_npz(path: str) -> Iterator[Archive]:
    """Opens an npz file; the arrays can be read until the context ends.

    Raises:
      UserError: it is truncated, not made of plain arrays, or declares what it cannot hold.
    """
    with open(path, "rb") as file, _told(path), zipfile.ZipFile(file) as opened:
        entries: dict[str, Stored] = {}
        for member in opened.infolist():
            name = member.filename.removesuffix(".npy")
            if name in entries:
                raise UserError(f"{path!r} holds {printable(name)} twice, so nobody can say which is meant.")
            entries[name] = _entry(path, file, opened, member, name)
        yield Archive(path, "npz", entries)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    """What zipfile and zlib say of damage, as a mistake of the user's own."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError) as e:
        raise UserError(f"{path!r} is truncated or damaged ({e}). Fetch it again.") from e


def _entry(path: str, file: BinaryIO, opened: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Stored:
    where = f"{printable(name)} in {path!r}"
    if not member.filename.endswith(".npy"):
        raise UserError(f"{where} is no array, so {path!r} is no npz file of weights.")
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{where} is encrypted or packed in a way that numpy does not write.")
    with opened.open(member) as f:  # which also compares the two headers that zip has of a member
        header, shape, fortran, dtype = _read_header(f, where)
    declared = math.prod(shape) * dtype.itemsize
    if declared != member.file_size - len(header):
        raise UserError(
            f"{where} declares {declared:,} bytes of numbers but holds {member.file_size - len(header):,}:"
            " the file is damaged, or made to do harm. Nothing of it was read."
        )
    if member.compress_type == zipfile.ZIP_DEFLATED:
        fill = lambda buffer: _inflate(opened, member, len(header), buffer)
        return Stored(name, shape, dtype, fill, fortran, compressed=True)
    start = _start(file, member) + len(header)
    if member.compress_size != member.file_size or start + declared > os.fstat(file.fileno()).st_size:
        raise UserError(f"{where} lies outside of the file: it is truncated or damaged. Fetch it again.")
    fill = lambda buffer: _read_into(file, start, zlib.crc32(header), member.CRC, where, buffer)
    return Stored(name, shape, dtype, fill, fortran)


def _read_header(f, where: str) -> tuple[bytes, tuple[int, ...], bool, np.dtype]:
    """The header's bytes and what it says: shape, whether Fortran order, dtype."""
    start = f.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\x01\x00", b"\x02\x00"):
        raise UserError(f"{where} is no array of numpy's format 1 or 2.")
    size = f.read(2 if start[6] == 1 else 4)
    length = int.from_bytes(size, "little")
    if length > _HEADER:
        raise UserError(f"{where} declares a header of {length:,} bytes; plain arrays need about 100.")
    body = size + f.read(length)
    read = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(io.BytesIO(body), max_header_size=_HEADER)
    except Exception as e:  # numpy lets through whatever Python's parser thinks of it
        raise UserError(f"{where} has a header that cannot be understood: it is damaged.") from e
    if dtype.hasobject:
        raise UserError(
            f"{where} holds pickled Python objects, which can run any code when they are read, so they never"
            " are here. Save plain arrays."
        )
    if any(n < 0 for n in shape):
        raise UserError(f"{where} declares the shape {shape}: no axis is shorter than nothing.")
    if dtype.str == "|V2" and not dtype.names:  # what numpy makes of a bfloat16 whose name it does not know
        dtype = BFLOAT16
    return start + body, shape, fortran, dtype


def _start(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Where an uncompressed member's bytes begin: behind its local header, which has parts of any length."""
    file.seek(member.header_offset)
    name, extra = struct.unpack("<HH", file.read(30)[26:])
    return member.header_offset + 30 + name + extra


def _read_into(file: BinaryIO, start: int, crc: int, expected: int, where: str, buffer: np.ndarray) -> None:
    file.seek(start)
    for i in range(0, len(buffer), _CHUNK):
        part = buffer[i : i + _CHUNK]
        if file.readinto(part) != len(part):  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError(f"{where} ends too early: the file is truncated. Fetch it again.")
        crc = zlib.crc32(part.data, crc)
    if crc != expected:
        raise UserError(f"{where} does not match its checksum: the file is damaged. Fetch it again.")


def _inflate(opened: zipfile.ZipFile, member: zipfile.ZipInfo, skip: int, buffer: np.ndarray) -> None:
    with opened.open(member) as f:
        f.read(skip)
        for i in range(0, len(buffer), _CHUNK):
            part = buffer[i : i + _CHUNK]
            data = f.read(len(part))  # zipfile compares the checksum at the end
            if len(data) != len(part):
                raise EOFError(f"{printable(member.filename)} unpacks to less than it declares")
            part[:] = np.frombuffer(data, np.uint8)
