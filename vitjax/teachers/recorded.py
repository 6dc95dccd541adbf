"""Logits of a teacher on disk, one row for each position of the stream of training examples.

The file is a safetensors file, so that anything can read it: `logits` float32 or float16 `[N, K]`, and
`crc32` uint32 `[N]`, one checksum a row, which does not fit a row that is still to come. Its metadata say of
which teacher and of which stream they are. Row s * batch_size + b belongs to row b of the batch of step s,
crop, mixup and all: what determines that image is in the metadata, and a run for which any of it differs is
refused.
"""

import contextlib
import fcntl
import functools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import files
from vitjax.errors import UserError
from vitjax.teachers.section import Section
from vitjax.teachers.student import Student

KEY = "_teacher_logits"
FORMAT = "vitjax teacher logits 1"
DTYPES = {"float32": "F32", "float16": "F16"}
_HEADER = 1 << 20  # bytes


class Recorded:
    """A teacher whose answers are read from a file, aligned with the batches.

    Attributes:
      abstract: None, it has no variables.
      by_position: the entry of the batch that its answers arrive in.
    """

    abstract = None

    def __init__(self, section: Section, student: Student):
        assert section.logits is not None
        path = pathlib.Path(section.logits).expanduser()
        self._rows = Rows(path)
        about = self._rows.about
        _check(path, about, section, student, self._rows.shape)
        self.by_position: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {KEY: self._rows}
        self._note = (
            f"teacher: logits of {section.logits}, {self._rows.shape[0]:,} rows, recorded from "
            f"{about['teacher'].get('weights')}"
        )
        self.checksum = about["checksum"]

    def logits(self, frozen: Any, batch: dict) -> jax.Array:
        """Its answers `[B, K]`, float32."""
        return jax.lax.stop_gradient(batch[KEY].astype(jnp.float32))

    def load(self) -> tuple[None, list[str]]:
        """No variables, and what is to be said."""
        return None, [self._note]


class Rows:
    """`rows(positions int64 [B]) -> logits [B, K]` of a whole file; pickles as its path.

    Raises UserError: there is no such file, it is none of teacher logits, or it is not whole.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.about, self.shape, self.dtype, self._start = read_header(path)
        self._opened: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Reads the rows; each is compared with its checksum."""
        logits, checksums = self._open()
        rows = np.asarray(logits[positions])
        for position, row, wanted in zip(positions.tolist(), rows, checksums[positions], strict=True):
            if zlib.crc32(row.tobytes()) != wanted:
                raise UserError(
                    f"{str(self.path)!r}: row {position:,} of the logits, of step "
                    f"{position // self.about['stream']['batch_size']:,}, is damaged. Record them again."
                )
        return rows

    def spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """The shape of the rows of a batch."""
        return jax.ShapeDtypeStruct((batch_size, self.shape[1]), self.dtype)

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        if self._opened is None:
            self._opened = mapped(self.path, self.shape, self.dtype, self._start)
        return self._opened

    def __reduce__(self):
        return Rows, (self.path,)


def mapped(
    path: pathlib.Path, shape: tuple[int, int], dtype: np.dtype, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the checksums of a file, mapped into memory, read-only."""
    logits = np.memmap(path, dtype, "r", start, shape)
    return logits, np.memmap(path, "<u4", "r", start + logits.nbytes, shape[:1])


def header(about: Mapping[str, Any], shape: tuple[int, int], dtype: str) -> bytes:
    """The head of a file for so many logits; the same for the same arguments."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    text = json.dumps(
        {
            "__metadata__": {"format": FORMAT, "about": json.dumps(about, sort_keys=True)},
            "logits": {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [0, size]},
            "crc32": {"dtype": "U32", "shape": [shape[0]], "data_offsets": [size, size + 4 * shape[0]]},
        }
    ).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text


def read_header(path: pathlib.Path) -> tuple[dict[str, Any], tuple[int, int], np.dtype, int]:
    """Returns what the file is about, shape and dtype of the logits, and where the numbers begin.

    Raises:
      UserError: there is no such file, it is none of teacher logits, or it is truncated.
    """
    remedy = "Record them with python -m vitjax.teacher_logits --config C --out FILE."
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(_HEADER, size) else b""
    except OSError as error:
        raise UserError(
            f"config.task.teacher.logits: cannot read {str(path)!r}: {error.strerror}. {remedy}"
        ) from error
    try:
        head = json.loads(text)
        if head["__metadata__"]["format"] != FORMAT:
            raise ValueError(head["__metadata__"]["format"])
        about = json.loads(head["__metadata__"]["about"])
        rows, classes = map(int, head["logits"]["shape"])
        kind = {tag: np.dtype(name) for name, tag in DTYPES.items()}[head["logits"]["dtype"]]
        _ = about["teacher"], about["stream"]["batch_size"], about["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"config.task.teacher.logits: {str(path)!r} is no file of teacher logits, or a damaged one."
            f" {remedy}"
        ) from error
    if size != 8 + length + rows * (classes * kind.itemsize + 4):
        raise UserError(f"config.task.teacher.logits: {str(path)!r} is truncated. {remedy}")
    return about, (rows, classes), kind, 8 + length


def _check(
    path: pathlib.Path,
    about: Mapping[str, Any],
    section: Section,
    student: Student,
    shape: tuple[int, int],
) -> None:
    """Refuses logits of another stream, another teacher, other labels or too few steps, by name."""
    told = differences(about["stream"], student.stream)
    if section.weights is not None or section.model is not None:
        told += differences(about["teacher"], json.loads(json.dumps(section.identity)), "task.teacher.")
    steps = shape[0] // about["stream"]["batch_size"]
    if steps < student.steps:
        told.append(f"the run takes {student.steps:,} steps, there are {steps:,}")
    if shape[1] != student.num_classes:
        told.append(f"the run has {student.num_classes:,} labels, the logits {shape[1]:,}")
    if told:
        raise UserError(
            f"config.task.teacher.logits: {str(path)!r} was recorded for another run: {'; '.join(told)}. Set "
            "these back, or record the logits again."
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two flat dicts, in words."""
    return [
        f"{prefix}{key} is {here.get(key, '(absent)')!r} now, {there.get(key, '(absent)')!r} there"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


class Writer:
    """Writes a file of logits step by step; goes on where an earlier writer of the same file stopped.

    Until the last step is written the file is called `FILE.partial`.

    Args:
      path: the file to be.
      about: what the logits are of: `teacher`, `checksum`, `stream`.
      steps: number of batches.
      num_classes: K.
      dtype: `float32` or `float16`.

    Raises:
      UserError: an unfinished file of another run is there, or nothing can be written.
    """

    def __init__(
        self, path: pathlib.Path, about: Mapping[str, Any], steps: int, num_classes: int, dtype: str
    ):
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.steps, self.batch_size = steps, about["stream"]["batch_size"]
        self.shape, self.dtype = (steps * self.batch_size, num_classes), np.dtype(dtype)
        self._head = header(about, self.shape, dtype)
        self._start = len(self._head)
        self._checksums = self._start + self.shape[0] * num_classes * self.dtype.itemsize
        files.folder(path.parent)
        self._file = self._begin()

    @functools.cached_property
    def done(self) -> int:
        """Number of steps, from the first on, that are there and whole."""
        logits, checksums = mapped(self.partial, self.shape, self.dtype, self._start)
        for step in range(self.steps):
            for row in range(step * self.batch_size, (step + 1) * self.batch_size):
                if zlib.crc32(logits[row].tobytes()) != checksums[row]:
                    return step
        return self.steps

    def write(self, step: int, logits: np.ndarray) -> None:
        """Writes the logits `[B, K]` of a step."""
        rows = np.ascontiguousarray(logits, self.dtype)
        checksums = np.fromiter((zlib.crc32(row.tobytes()) for row in rows), "<u4", len(rows))
        first = step * self.batch_size
        self._put(rows.tobytes(), self._start + first * rows.strides[0])
        self._put(checksums.tobytes(), self._checksums + 4 * first)

    def finish(self) -> None:
        """Gives the file its name; all steps must have been written."""
        with self._blaming():
            os.fsync(self._file)
            os.replace(self.partial, self.path)

    def close(self) -> None:
        """Lets go of the file; what was written stays."""
        os.close(self._file)

    def _begin(self) -> int:
        """Opens the unfinished file, or makes one of the full size, which takes up no space yet."""
        with self._blaming():
            file = os.open(self.partial, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
            except OSError as error:
                os.close(file)
                raise UserError(f"{str(self.partial)!r} is being written by another process.") from error
            if os.fstat(file).st_size < self._start:
                os.pwrite(file, self._head, 0)
                os.ftruncate(file, self._checksums + 4 * self.shape[0])
        if os.pread(file, self._start, 0) != self._head:
            os.close(file)
            raise UserError(
                f"{str(self.partial)!r} was begun for another run or another teacher: {self._told()}. Remove"
                " it, or give another --out."
            )
        return file

    def _told(self) -> str:
        there, shape, dtype, _ = read_header(self.partial)
        here = json.loads(json.loads(self._head[8:])["__metadata__"]["about"])
        told = differences(there["stream"], here["stream"])
        told += differences(there["teacher"], here["teacher"], "task.teacher.")
        told += differences(
            dict(shape=shape, dtype=str(dtype), checksum=there["checksum"]),
            dict(shape=self.shape, dtype=str(self.dtype), checksum=here["checksum"]),
        )
        return "; ".join(told)

    def _put(self, data: bytes, at: int) -> None:
        """Writes all of it, or says why not."""
        with self._blaming():
            while data:
                written = os.pwrite(self._file, data, at)
                data, at = data[written:], at + written

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.cannot_write(self.partial, error) from error
