"""`tiny_imagenet:PATH`: Tiny-ImageNet-200, as http://cs231n.stanford.edu/tiny-imagenet-200.zip has it."""

import functools
import hashlib
import pathlib
import re
from typing import Any

import numpy as np

from vitjax.data.sources.archives import FolderFiles, ZipFiles, damaged
from vitjax.data.sources.base import Source, Splits, register
from vitjax.errors import UserError

_ARCHIVE, _FOLDER = "tiny-imagenet-200.zip", "tiny-imagenet-200"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

_IN_CLASS = re.compile(r"(train|val)/(n\d{8})/(?:.*/)?[^/]+\.JPE?G", re.IGNORECASE)
_ANNOTATIONS = "val/val_annotations.txt"
_VAL_IMAGES = "val/images/"


class TinyImageNetSource(Source):
    """Encoded images of one split, ordered by a hash of their names, which mixes the classes."""

    def __init__(
        self,
        name: str,
        files: ZipFiles | FolderFiles,
        stored: dict[str, str],
        labels: dict[str, int],
        class_names: tuple[str, ...],
    ):
        self.name = name
        self.class_names = class_names
        self._files = files
        order = sorted(labels, key=lambda each: hashlib.blake2b(each.encode(), digest_size=8).digest())
        self._names = np.array([stored[each].encode() for each in order])
        self._labels = np.array([labels[each] for each in order], np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._files.read(self._path(index)), "label": self._labels[index]}

    def describe(self, index: int) -> str:
        """The path of the image file."""
        return f"{self._files.path}/{self._path(index)}"

    def _path(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        return self._names[index].decode()


@register("tiny_imagenet", "tiny_imagenet:PATH")
def open_tiny_imagenet(path: str) -> Splits:
    """Tiny-ImageNet: JPEG files of 64 x 64 pixels, 200 classes, in `train` and `val`; `test` has no labels.

    `PATH` is the zip archive, what it unpacks to, or a folder with one of these in it. The images of `val`
    are labelled by its `val_annotations.txt`, or lie in class folders, as some code wants them. Classes
    are numbered in the order of their WordNet numbers; their names are the words of `words.txt`.
    """
    place = _find(pathlib.Path(path).expanduser())
    files = ZipFiles(place, _MD5) if place.is_file() else FolderFiles(place)
    names = {name.removeprefix(f"{_FOLDER}/"): name for name in files.names()}
    numbers = sorted({match[2] for match in map(_IN_CLASS.fullmatch, names) if match and match[1] == "train"})
    if not numbers:
        raise UserError(
            f"data='tiny_imagenet:{path}': there are no images train/nXXXXXXXX/images/*.JPEG in {place}."
        )
    class_names = _class_names(files, names, numbers)
    labels = {"train": {}, "val": {}}
    for name in names:
        if match := _IN_CLASS.fullmatch(name):
            labels[match[1]][name] = _number(place, numbers, match[2])
    if _ANNOTATIONS in names:
        labels["val"] |= _annotated(place, names, files.read(names[_ANNOTATIONS]), numbers)
    return {
        split: functools.partial(
            TinyImageNetSource, f"tiny_imagenet:{place}:{split}", files, names, found, class_names
        )
        for split, found in labels.items()
        if found
    }


def _find(path: pathlib.Path) -> pathlib.Path:
    """The archive or the folder above `train` that `path` means."""
    for place in (path, path / _FOLDER, path / _ARCHIVE):
        if place.is_file() or (place / "train").is_dir():
            return place
    if not path.exists():
        raise UserError(f"data='tiny_imagenet:{path}': there is no such file or folder.")
    raise UserError(
        f"data='tiny_imagenet:{path}': the folder has neither {_ARCHIVE} nor what it unpacks to, {_FOLDER}."
    )


def _number(place: pathlib.Path, numbers: list[str], wordnet: str) -> int:
    if wordnet not in numbers:
        raise damaged(place, f"the class {wordnet} of val is none of the {len(numbers)} of train", _MD5)
    return numbers.index(wordnet)


def _class_names(files: Any, names: dict[str, str], numbers: list[str]) -> tuple[str, ...]:
    """The words for each class, or its WordNet number where there are none."""
    if "words.txt" not in names:
        return tuple(numbers)
    lines = files.read(names["words.txt"]).decode("utf-8", "replace").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(number, number) for number in numbers)


def _annotated(
    place: pathlib.Path, names: dict[str, str], content: bytes, numbers: list[str]
) -> dict[str, int]:
    """Labels of the images of `val/images`; each line has a file, a class and a box, apart by tabs."""
    lines = [line.split("\t") for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    if broken := [line for line in lines if len(line) < 2]:
        raise damaged(place, f"{_ANNOTATIONS} has the line {broken[0][0]!r}", _MD5)
    classes = {_VAL_IMAGES + line[0]: line[1] for line in lines}
    images = {name for name in names if name.startswith(_VAL_IMAGES)}
    if not images:
        return {}  # they have been sorted into class folders
    if missing := sorted(images ^ set(classes)):
        what = "is not there" if missing[0] in classes else f"has no line in {_ANNOTATIONS}"
        raise damaged(place, f"{missing[0]} {what}", _MD5)
    return {name: _number(place, numbers, wordnet) for name, wordnet in classes.items()}
