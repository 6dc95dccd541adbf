"""`cifar10:PATH`, `cifar100:PATH`: the archives of https://www.cs.toronto.edu/~kriz/cifar.html.

Both the "binary version" and the "python version". The latter is pickles; they are read as plain data,
without unpickling (`plain_pickle`).
"""

import dataclasses
import functools
import pathlib

import numpy as np

from vitjax.data.sources import plain_pickle
from vitjax.data.sources.archives import damaged, tar_files
from vitjax.data.sources.arrays import Arrays, ArraySource
from vitjax.data.sources.base import Splits, register
from vitjax.errors import UserError

_PIXELS = 3 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Version:
    """One of the ways in which a data set is published.

    Attributes:
      folder: what its archive unpacks to.
      archive: name of the archive.
      md5: of the archive, from the site.
      splits: files of each split.
      class_names: file of the class names.
      label: key of the labels in a pickle, whose class names are under `{label without s}_names`; for binary
        records the number of bytes before the pixels, the last of which is the label.
    """

    folder: str
    archive: str
    md5: str
    splits: dict[str, tuple[str, ...]]
    class_names: str
    label: str | int


_BATCHES = range(1, 6)
VERSIONS = {
    "cifar10": (
        Version(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            "c32a1d4ab5d03f1284b67883e8d87530",
            {"train": tuple(f"data_batch_{i}.bin" for i in _BATCHES), "test": ("test_batch.bin",)},
            "batches.meta.txt",
            1,
        ),
        Version(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            "c58f30108f718f92721af3b95e74349a",
            {"train": tuple(f"data_batch_{i}" for i in _BATCHES), "test": ("test_batch",)},
            "batches.meta",
            "labels",
        ),
    ),
    "cifar100": (
        Version(
            "cifar-100-binary",
            "cifar-100-binary.tar.gz",
            "03b5dce01913d631647c71ecec9e9cb8",
            {"train": ("train.bin",), "test": ("test.bin",)},
            "fine_label_names.txt",
            2,
        ),
        Version(
            "cifar-100-python",
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            {"train": ("train",), "test": ("test",)},
            "meta",
            "fine_labels",
        ),
    ),
}


@register("cifar10", "cifar10:PATH")
def open_cifar10(path: str) -> Splits:
    """CIFAR-10: uint8 `[32, 32, 3]`, ten classes, in `train` and `test`.

    `PATH` is the archive `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`, what it unpacks to, or a
    folder with one of these in it. Images are in the order of the files.
    """
    return _open("cifar10", path)


@register("cifar100", "cifar100:PATH")
def open_cifar100(path: str) -> Splits:
    """CIFAR-100 with its hundred fine labels, as `cifar10`: `cifar-100-binary.tar.gz` or `-python`."""
    return _open("cifar100", path)


def _open(kind: str, path: str) -> Splits:
    place, version = _find(kind, pathlib.Path(path).expanduser())
    names = _class_names(kind, place, version)
    return {
        split: functools.partial(
            ArraySource, f"{kind}:{place}:{split}", functools.partial(_load, place, version, files), names
        )
        for split, files in version.splits.items()
    }


def _find(kind: str, path: pathlib.Path) -> tuple[pathlib.Path, Version]:
    """The archive or the folder of files that `path` means, and which version it is."""
    if not path.exists():
        raise UserError(f"data='{kind}:{path}': there is no such file or folder.")
    if path.is_file():
        return path, _version_of_archive(kind, path)
    places = [(path / name, version) for version in VERSIONS[kind] for name in ("", version.folder)]
    for place, version in places:
        if any((place / file).is_file() for files in version.splits.values() for file in files):
            return place, version
    for version in VERSIONS[kind]:
        if (path / version.archive).is_file():
            return path / version.archive, version
    archives = " or ".join(version.archive for version in VERSIONS[kind])
    raise UserError(f"data='{kind}:{path}': the folder has neither {archives} nor what they unpack to.")


def _version_of_archive(kind: str, path: pathlib.Path) -> Version:
    """The version whose files an archive holds, whatever its own name."""
    seen, _ = _scan(kind, path, _stamp(path))
    for version in VERSIONS[kind]:
        if any(file in seen for files in version.splits.values() for file in files):
            return version
    archives = " or ".join(version.archive for version in VERSIONS[kind])
    raise UserError(f"data='{kind}:{path}': this archive does not hold the files of {archives}.")


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    """Changes with the file."""
    about = file.stat()
    return about.st_mtime_ns, about.st_size


@functools.lru_cache(maxsize=4)  # going through an archive takes a second
def _scan(
    kind: str, archive: pathlib.Path, stamp: tuple[int, int]
) -> tuple[frozenset[str], dict[str, bytes]]:
    """The files that an archive holds, and the contents of those with class names."""
    del stamp  # a part of the key
    seen: set[str] = set()

    def has_names(name: str) -> bool:
        seen.add(name)
        return any(name == version.class_names for version in VERSIONS[kind])

    md5 = next((version.md5 for version in VERSIONS[kind] if version.archive == archive.name), None)
    names = dict(tar_files(archive, has_names, md5))
    return frozenset(seen), names


def _read(place: pathlib.Path, version: Version, names: tuple[str, ...]) -> list[bytes]:
    """The contents of files of a folder or archive; raises UserError if one is missing."""
    if place.is_dir():
        found = {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
    else:
        found = dict(tar_files(place, lambda name: name in names, version.md5))
    missing = [name for name in names if name not in found]
    if missing:
        raise _not_whole(place, version, f"it has no {missing[0]}")
    return [found[name] for name in names]


def _not_whole(place: pathlib.Path, version: Version, what: str) -> UserError:
    if place.is_dir():
        return UserError(
            f"{place} is damaged or not whole: {what}. Unpack {version.archive} again, whose MD5 is "
            f"{version.md5}."
        )
    return damaged(place, what, version.md5)


def _load(place: pathlib.Path, version: Version, files: tuple[str, ...]) -> Arrays:
    """Images uint8 `[N, 32, 32, 3]` and labels of files."""
    parts = [
        _records(place, version, name, content)
        for name, content in zip(files, _read(place, version, files), strict=True)
    ]
    lengths = {name: len(labels) for name, (_, labels) in zip(files, parts, strict=True)}
    if len(set(lengths.values())) > 1:  # all files of a split are published with as many images
        short = min(lengths, key=lengths.__getitem__)
        raise _not_whole(
            place, version, f"{short} has {lengths[short]} images and others {max(lengths.values())}"
        )
    pixels = np.concatenate([pixels for pixels, _ in parts])
    # A row is the red plane, the green one, the blue one.
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.concatenate([labels for _, labels in parts])


def _records(place: pathlib.Path, version: Version, name: str, content: bytes) -> Arrays:
    """Pixels uint8 `[N, 3072]` and labels of one file."""
    if isinstance(version.label, int):
        length = version.label + _PIXELS
        if not content or len(content) % length:
            raise _not_whole(
                place, version, f"{name} has {len(content)} bytes, which is not a whole number of {length}"
            )
        rows = np.frombuffer(content, np.uint8).reshape(-1, length)
        return rows[:, version.label :], rows[:, version.label - 1]
    batch = _unpickled(place, version, name, content)
    pixels, labels = batch.get("data"), batch.get(version.label)
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or not all(isinstance(label, int) for label in labels)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(labels), _PIXELS)
    ):
        raise _not_whole(
            place, version, f"{name} does not hold 'data', uint8 [N, {_PIXELS}], and {version.label!r}"
        )
    return pixels, np.array(labels, np.int32)


def _unpickled(place: pathlib.Path, version: Version, name: str, content: bytes) -> dict:
    try:
        return plain_pickle.load_dict(content)
    except ValueError as error:
        raise _not_whole(place, version, f"{name}: {error}") from error


def _class_names(kind: str, place: pathlib.Path, version: Version) -> tuple[str, ...]:
    """The names that come with the data; numbers where somebody has kept the images alone."""
    number = {"cifar10": 10, "cifar100": 100}[kind]
    if place.is_dir() and not (place / version.class_names).is_file():
        return tuple(map(str, range(number)))
    if place.is_dir():
        content = (place / version.class_names).read_bytes()
    else:
        content = _scan(kind, place, _stamp(place))[1].get(version.class_names)
    if content is None:
        raise _not_whole(place, version, f"it has no {version.class_names}")
    if isinstance(version.label, int):
        names = content.decode("utf-8", "replace").split()
    else:
        found = _unpickled(place, version, version.class_names, content)
        names = found.get(f"{version.label.removesuffix('s')}_names", ())
    if len(names) != number:
        raise _not_whole(place, version, f"{version.class_names} has {len(names)} class names, not {number}")
    return tuple(map(str, names))
