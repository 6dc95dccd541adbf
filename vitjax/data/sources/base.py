"""What a source is, the table of kinds, and slices of sources."""

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitjax.data import splits
from vitjax.errors import UserError, nearest


class Source:
    """Random access to labelled images: `len(source)`, `source[i]`.

    `source[i]` is `{"image": bytes | np.uint8[H, W, C], "label": np.int32}`; bytes are an encoded
    image file. Sources are pickled to worker processes, so they open files when first read and
    leave what they have opened or loaded out of the pickle.
    """

    name: str
    class_names: tuple[str, ...]
    unit: str = "img"
    """What speed is measured in."""

    @property
    def units_per_example(self) -> float:
        """How many units an example is."""
        return 1

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of it when a run begins."""
        return ()

    @property
    def about(self) -> Mapping[str, Any]:
        """What `run.json` keeps of it."""
        return {}

    @property
    def num_classes(self) -> int:
        """Number of classes; labels lie in `[0, num_classes)`."""
        return len(self.class_names)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Where example `index` comes from, for error messages: a file name, or a name and number."""
        return f"example {index} of {self.name}"


class Slices(Source):
    """The examples `[start, stop)` of one or more sources, one after another."""

    def __init__(self, name: str, pieces: list[tuple[Source, int, int]]):
        self.name = name
        self.class_names = pieces[0][0].class_names
        self._pieces = pieces
        self._ends = list(itertools.accumulate(stop - start for _, start, stop in pieces))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, index: int) -> tuple[Source, int]:
        """The source that holds example `index`, and the example's index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        which = bisect.bisect_right(self._ends, index)
        source, _, stop = self._pieces[which]
        return source, stop - (self._ends[which] - int(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, index = self._locate(index)
        return source[index]

    def describe(self, index: int) -> str:
        """Where example `index` comes from."""
        source, index = self._locate(index)
        return source.describe(index)


# What a kind's opener returns: for each split it has, a function that makes the split's source.
Splits = Mapping[str, Callable[[], Source]]
Opener = Callable[[str], Splits]
_KINDS: dict[str, tuple[str, Opener]] = {}


def register(kind: str, usage: str) -> Callable[[Opener], Opener]:
    """Registers `opener(argument) -> splits` for `data="kind:argument"`; `usage` is shown in errors."""

    def add(opener: Opener) -> Opener:
        _KINDS[kind] = (usage, opener)
        return opener

    return add


def splits_of(data: str) -> Splits:
    """For each split that `data` has, a function that opens it; raises UserError as `open_source` does."""
    kind, _, argument = data.partition(":")
    if kind not in _KINDS:
        usages = ", ".join(usage for usage, _ in _KINDS.values())
        raise UserError(
            f"data={data!r}: no source is called {kind!r}.{nearest(kind, _KINDS)}{_as_tfds(data)} "
            f"Sources: {usages}."
        )
    usage, opener = _KINDS[kind]
    if bool(argument) != (":" in usage):
        raise UserError(f"data={data!r} should have the form {usage!r}.")
    return opener(argument)


def _as_tfds(data: str) -> str:
    """A hint for big_vision's way of naming data sets of TFDS, without a kind."""
    return "" if ":" in data else f" A data set of TFDS is 'tfds:{data}'."


def open_source(data: str, split: str = "train") -> Source:
    """Opens labelled images for random access.

    Args:
      data: `digits`, `folder:PATH`, `arrays:PATH`, `cifar10:PATH`, `cifar100:PATH`, `svhn:PATH`,
        `tiny_imagenet:PATH`, `tfds:NAME[/CONFIG][:VERSION][@DIR]`, `vtab:TASK[:VERSION][@DIR]` or another
        registered kind.
      split: a split or a sum of slices of splits (see `vitjax.data.splits`).

    Returns:
      A picklable `Source`.

    Raises:
      UserError: for an unknown kind or split, and for data that is missing or damaged.
    """
    return select(f"{data}:{split}", split, splits_of(data))


def select(name: str, split: str, available: Splits) -> Source:
    """What the split string `split` picks from `available`, called `name` if it is more or less than a split.

    Raises UserError as `open_source` does.
    """
    pieces = splits.parse(split, available)
    opened = {each: available[each]() for each in dict.fromkeys(piece.name for piece in pieces)}
    parts = [(opened[piece.name], *piece.bounds(len(opened[piece.name]))) for piece in pieces]
    if len(parts) == 1 and parts[0][1:] == (0, len(parts[0][0])):
        return parts[0][0]
    return Slices(name, parts)


def as_image(array: np.ndarray) -> np.ndarray:
    """Gives a greyscale image `[H, W]` its channel axis: `[H, W, 1]`."""
    return array[..., None] if array.ndim == 2 else array
