"""What all files of weights come down to: named arrays, whose shapes are known before any number is read."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Stored:
    """One array in a file.

    `fill` writes the array's bytes into a buffer of exactly as many. `compressed`: the file may be far
    smaller than what it declares, so that the size must be judged by other means before it is read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fill: Callable[[np.ndarray], None]  # takes uint8 [nbytes]
    fortran: bool = False
    compressed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory, in its own dtype."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, out: np.ndarray | None = None) -> np.ndarray:
        """The array, in its own dtype; in `out`, which is in C order, if that is of the same kind."""
        if out is None or self.fortran or (out.dtype, out.shape) != (self.dtype, self.shape):
            out = np.empty(self.shape[::-1] if self.fortran else self.shape, self.dtype)
        self.fill(out.reshape(-1).view(np.uint8))
        return out.T if self.fortran else out


@dataclasses.dataclass(frozen=True)
class Archive:
    """The arrays of one file, to be read as long as it is open."""

    path: str
    kind: str  # "npz", "safetensors", "PyTorch", "vitjax checkpoint"
    entries: Mapping[str, Stored]


def is_float(dtype: np.dtype) -> bool:
    """Whether it is float64, float32, float16 (in any byte order) or bfloat16."""
    return dtype == BFLOAT16 or (dtype.kind == "f" and dtype.itemsize in (2, 4, 8))


def from_array(name: str, array: np.ndarray) -> Stored:
    """An array that is in memory already."""

    def fill(buffer):
        buffer[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)

    return Stored(name, array.shape, array.dtype, fill)


def shown(shape: tuple[int, ...]) -> str:
    """`[768, 3072]`."""
    return f"[{', '.join(str(n)[:20] for n in shape[:6])}{', ...' if len(shape) > 6 else ''}]"


def printable(text: str, most: int = 100) -> str:
    """A name out of a file nobody vouches for, fit for a terminal: no control characters, not endless."""
    clean = re.sub(r"[^\x20-\x7e]", "?", text)
    return repr(clean if len(clean) <= most else clean[:most] + "...")
