"""`arrays:PATH`: images held in memory, from a `.npz` file or a folder of IDX files (the MNIST format)."""

import functools
import gzip
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from vitjax.data.sources.base import Source, Splits, as_image, register
from vitjax.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]

# The names under which images and labels of a split go in .npz files: Keras' `x_train`, MedMNIST's
# `train_images`; a file without splits has `images` or `x`, and is the split `train`.
_SPLITS = ("train", "val", "validation", "test")
_NPZ_KEYS = {
    split: [(f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")] for split in _SPLITS
}
_NPZ_KEYS["train"] += [("images", "labels"), ("image", "label"), ("x", "y")]

_IDX_IMAGES = re.compile(r"(.*)images[-.]idx3-ubyte(\.gz)?")
_IDX_SPLITS = {"t10k": "test"}
_IDX_MAGIC = {"images": 2051, "labels": 2049}


class ArraySource(Source):
    """Images and labels in memory, checked once: `uint8 [N, H, W]` or `[N, H, W, C]`, integer `[N]`.

    `load()` returns both. It is what travels to worker processes, not the arrays.
    """

    def __init__(self, name: str, load: Callable[[], Arrays], class_names: tuple[str, ...]):
        self.name = name
        self.class_names = class_names
        self._load = load
        self._arrays = _checked(name, *load())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": None}

    def __len__(self) -> int:
        return len(self._loaded()[1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        images, labels = self._loaded()
        if not 0 <= index < len(labels):
            raise IndexError(f"{index} is not in [0, {len(labels)}) of {self.name}")
        return {"image": as_image(images[index]), "label": labels[index]}

    def _loaded(self) -> Arrays:
        if self._arrays is None:
            self._arrays = _checked(self.name, *self._load())
        return self._arrays


def _integers(name: str, labels: np.ndarray) -> np.ndarray:
    """Labels as int32 `[N]`; Keras and MedMNIST store a column `[N, 1]`."""
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: labels must be integers [N], not {labels.dtype} {list(labels.shape)}.")
    return labels.astype(np.int32)


def _checked(name: str, images: np.ndarray, labels: np.ndarray) -> Arrays:
    """Refuses arrays that are not images and labels; returns them with labels int32 `[N]`."""
    labels = _integers(name, labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{name}: images must be uint8 [N, H, W] or [N, H, W, C], not {images.dtype} {[*images.shape]}."
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise UserError(
            f"{name}: images of shape {list(images.shape)} have {images.shape[3]} channels in the last "
            "place, where 1 or 3 belong. Channels-first images must be transposed to [N, H, W, C]."
        )
    if len(images) != len(labels):
        raise UserError(f"{name}: {len(images)} images but {len(labels)} labels.")
    images.setflags(write=False)  # examples are views; an op that works in place would change the data set
    return images, labels


@register("arrays", "arrays:PATH")
def open_arrays(path: str) -> Splits:
    """Opens a `.npz` file or a folder of IDX files.

    A `.npz` file holds, for each split `train`, `val`, `validation`, `test`, either `x_{split}` and
    `y_{split}` or `{split}_images` and `{split}_labels`; or, without splits, `images` and `labels` (`image`
    and `label`, `x` and `y`), which is then `train`. `class_names` (strings) is optional; without it the
    classes are counted over all splits. Pickled arrays are refused, since unpickling runs code.

    An IDX folder holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k-`
    (the split `test`), gzipped or not: MNIST, Fashion-MNIST, KMNIST, EMNIST as they are published.
    """
    file = pathlib.Path(path).expanduser()
    if file.is_dir():
        return _open_idx(file)
    if not file.is_file():
        raise UserError(f"data='arrays:{path}': there is no such file or folder.")
    return open_npz(file)


def open_npz(file: pathlib.Path, name: str | None = None) -> Splits:
    """The splits of a `.npz` file, named as `open_arrays` says; in messages the source is called `name`."""
    name, class_names = name or f"arrays:{file}", None
    with _npz(file) as stored:
        found = {
            split: pair
            for split, pairs in _NPZ_KEYS.items()
            for pair in pairs
            if pair[0] in stored and pair[1] in stored
        }
        if not found:
            raise UserError(
                f"{file} has the arrays {sorted(stored)}, but 'images' and 'labels', 'x_train' and 'y_train' "
                "or 'train_images' and 'train_labels' are needed."
            )
        if "class_names" in stored:
            class_names = tuple(str(each) for each in _member(file, stored, "class_names"))
        if class_names is None:
            class_names = _numbered(name, [_member(file, stored, labels) for _, labels in found.values()])
    return {
        split: functools.partial(
            ArraySource, f"{name}:{split}", functools.partial(_read_npz, file, *pair), class_names
        )
        for split, pair in found.items()
    }


def _numbered(name: str, label_arrays: list[np.ndarray]) -> tuple[str, ...]:
    """Class names for a data set that has none: "0", "1", ... up to the largest label of any split."""
    largest = max(_integers(name, labels).max(initial=-1) for labels in label_arrays)
    if largest >= 1_000_000:
        raise UserError(f"{name}: the largest label is {largest}. Labels must be class numbers from 0 on.")
    return tuple(str(number) for number in range(largest + 1))


def _npz(file: pathlib.Path):
    try:
        stored = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read as .npz: {error}") from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise UserError(f"{file} is not a .npz file. Save images and labels with np.savez.")
    return stored


def _member(file: pathlib.Path, stored, key: str) -> np.ndarray:
    try:
        return stored[key]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        pickled = (
            " Arrays of Python objects are refused; save them as numbers." if "pickle" in str(error) else ""
        )
        raise UserError(f"array {key!r} of {file} cannot be read: {error}.{pickled}") from error


def _read_npz(file: pathlib.Path, images: str, labels: str) -> Arrays:
    with _npz(file) as stored:
        return _member(file, stored, images), _member(file, stored, labels)


def _open_idx(folder: pathlib.Path) -> Splits:
    """The splits of a folder of IDX files."""
    pairs = {}
    for images in sorted(folder.iterdir()):
        match = _IDX_IMAGES.fullmatch(images.name)
        if match is None:
            continue
        last = re.split(r"[-_.]", match[1].rstrip("-_."))[-1]  # "emnist-letters-train-" is a train split
        split = _IDX_SPLITS.get(last, last or "train")
        labels = _idx_labels(folder, match[1])
        if pairs.setdefault(split, (images, labels))[1] != labels:
            raise UserError(
                f"{folder} has two data sets: {pairs[split][0].name} and {images.name} are both {split!r}. "
                "Keep one in the folder."
            )
    if not pairs:
        raise UserError(
            f"data='arrays:{folder}': no IDX files ('train-images-idx3-ubyte' and so on, "
            ".gz or not). For pictures in class folders write folder:PATH; for arrays name a .npz file."
        )
    class_names = _numbered(f"arrays:{folder}", [read_idx(labels, "labels") for _, labels in pairs.values()])
    return {
        split: functools.partial(
            ArraySource, f"arrays:{folder}:{split}", functools.partial(_read_idx_pair, *pair), class_names
        )
        for split, pair in pairs.items()
    }


def _idx_labels(folder: pathlib.Path, prefix: str) -> pathlib.Path:
    names = [f"{prefix}labels{joint}idx1-ubyte{gz}" for joint in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has images {prefix}images..., but no labels {names[0]}[.gz].")


def _read_idx_pair(images: pathlib.Path, labels: pathlib.Path) -> Arrays:
    return read_idx(images, "images"), read_idx(labels, "labels")


def read_idx(file: pathlib.Path, content: str) -> np.ndarray:
    """Reads one IDX file of bytes: `uint8 [N, H, W]` for `images`, `uint8 [N]` for `labels`.

    The format (http://yann.lecun.com/exdb/mnist): a big-endian int32 magic number whose last byte is the
    number of dimensions, one int32 for each dimension, then the data.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is damaged or truncated: {error}. Fetch it again.") from error
    magic = int.from_bytes(data[:4], "big")
    if magic != _IDX_MAGIC[content]:
        raise UserError(
            f"{file} is not an IDX file of {content}: its magic number is {magic}, not {_IDX_MAGIC[content]}."
        )
    head = 4 + 4 * (magic % 256)
    shape = np.frombuffer(data[4:head].ljust(head - 4, b"\0"), ">i4").tolist()
    expected = head + int(np.prod(shape, dtype=np.int64))
    if len(data) != expected:
        raise UserError(
            f"{file} is damaged or truncated: it has {len(data)} bytes, and its header {shape} asks for "
            f"{expected}. Fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
