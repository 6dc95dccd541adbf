"""`folder:PATH`: one subfolder of image files for each class."""

import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from vitjax.data.sources.base import Source, Splits, register
from vitjax.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
_SPLITS = ("train", "val", "validation", "test")


class FolderSource(Source):
    """Encoded image files of a folder of class folders, in an order that mixes the classes.

    Files are ordered by a hash of their path below the folder. So every slice of the split is a fair sample
    of it, the order is the same on every machine, and adding a file does not reorder the others.
    """

    def __init__(self, root: pathlib.Path, class_names: tuple[str, ...]):
        self.name = f"folder:{root}"
        self.class_names = class_names
        self._root = root
        numbers = {name: number for number, name in enumerate(class_names)}
        found = [(file, numbers[name]) for name in _class_folders(root) for file in _image_files(root, name)]
        found.sort(key=lambda pair: hashlib.blake2b(pair[0], digest_size=8).digest())
        # An array of bytes, since a list of a million strings would be slow to send to each worker process.
        self._files = np.array([file for file, _ in found])
        self._labels = np.array([label for _, label in found], np.int32)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.describe(index), "rb") as file:
            return {"image": file.read(), "label": self._labels[index]}

    def describe(self, index: int) -> str:
        """The path of the image file."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        return os.path.join(self._root, os.fsdecode(self._files[index].replace(b"/", os.sep.encode())))


def _class_folders(root: pathlib.Path) -> list[str]:
    return sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )


def _image_files(root: pathlib.Path, name: str) -> list[bytes]:
    """Paths of the images of one class below `root`, at any depth; other files are named in a warning."""
    images, foreign = [], []
    for folder, _, files in os.walk(root / name, followlinks=True):
        inside = pathlib.PurePath(os.path.relpath(folder, root)).as_posix()
        for file in files:
            if file.startswith("."):
                continue
            (images if file.lower().endswith(EXTENSIONS) else foreign).append(f"{inside}/{file}")
    if not images:
        holds = f" It holds {foreign[0]!r}, which is none." if foreign else ""
        raise UserError(
            f"the class folder {root / name} holds no images ({', '.join(EXTENSIONS)}).{holds} "
            "Fill it, or remove it if it is not a class."
        )
    if foreign:
        logging.warning(
            "%s: %d files are no images and are passed over, such as %s.", root, len(foreign), foreign[0]
        )
    return [os.fsencode(image) for image in images]


@register("folder", "folder:PATH")
def open_folder(path: str) -> Splits:
    """Opens a folder of class folders of JPEG, PNG or WebP files.

    `PATH/train/CLASS/...` with `val`, `validation` or `test` beside it are the splits of those names, and the
    classes are those of `train`. Otherwise `PATH/CLASS/...` is all one split, `train`, to be sliced. Classes
    are numbered in the order of their sorted names.
    """
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data='folder:{path}': there is no such folder.")
    splits = [name for name in _SPLITS if (root / name).is_dir() and _class_folders(root / name)]
    roots = {name: root / name for name in splits} or {"train": root}
    class_names = tuple(_class_folders(roots.get("train", next(iter(roots.values())))))
    if not class_names:
        raise UserError(
            f"data='folder:{path}': the folder has no subfolders. Images go in one subfolder for each class: "
            f"{root / 'CLASS' / 'image.jpg'}."
        )
    for split, folder in roots.items():
        for name in _class_folders(folder):
            if name not in class_names:
                raise UserError(
                    f"data='folder:{path}': class folder {name!r} of split {split!r} is not in 'train'."
                )
    return {split: functools.partial(FolderSource, folder, class_names) for split, folder in roots.items()}
