"""`tfds:NAME`: data sets in the layout of TensorFlow Datasets, read without TensorFlow."""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vitjax.data.sources import records
from vitjax.data.sources.base import Source, Splits, register
from vitjax.errors import UserError

_ARGUMENT = re.compile(r"(?P<name>[\w./-]+?)(:(?P<version>\d+\.\d+\.\d+))?(@(?P<data_dir>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

# Data sets whose published files are a source of their own.
_ARCHIVES = {
    "cifar10": "cifar10:PATH",
    "cifar100": "cifar100:PATH",
    "svhn_cropped": "svhn:PATH",
    "fashion_mnist": "arrays:PATH",
    "mnist": "arrays:PATH",
}

# The features of a record by name, each a `tf.train.Feature`. One inside another is called `outer/inner`. Of
# a sequence, it has the numbers of all items, one item after another.
Features = Mapping[str, Any]


class TfdsSource(Source):
    """One split of a prepared data set.

    A record is a serialised `tf.train.Example`, in which TFDS stores an image as the bytes of its file and a
    class label as an integer. `read(features)`, which must be picklable, makes an example of those it wants;
    an IndexError or ValueError of it means that the record is damaged.
    """

    def __init__(
        self,
        name: str,
        rows: records.Records,
        read: Callable[[Features], dict[str, Any]],
        class_names: tuple[str, ...],
    ):
        self.name = name
        self.class_names = class_names
        self._rows = rows
        self._read = read

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from google.protobuf import message
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        try:
            return self._read(tf_example_pb2.Example.FromString(self._rows[index]).features.feature)
        except (message.DecodeError, IndexError, ValueError) as error:
            raise OSError(f"damaged record: {error}") from error


@register("tfds", "tfds:NAME[/CONFIG][:VERSION][@DIR]")
def open_tfds(argument: str) -> Splits:
    """Opens a data set that TFDS or `python -m vitjax.data.prepare` has prepared.

    Its files are ArrayRecord or TFRecord. It is looked for in `DIR`, else in `$TFDS_DATA_DIR`, else in
    `~/tensorflow_datasets`; the newest version is taken unless one is named. It must have one image and one
    class label; just these two are read.
    """
    import tensorflow_datasets as tfds  # here, since it takes a second

    prepared = find(f"tfds:{argument}", argument, _how_to_prepare)
    keys = (
        _feature(prepared, "image", tfds.features.Image),
        _feature(prepared, "label", tfds.features.ClassLabel),
    )
    class_names = tuple(prepared.info.features[keys[1]].names)
    return open_splits(prepared, functools.partial(_image_and_label, *keys), class_names)


def _image_and_label(image: str, label: str, features: Features) -> dict[str, Any]:
    return {
        "image": features[image].bytes_list.value[0],
        "label": np.int32(features[label].int64_list.value[0]),
    }


class Prepared(NamedTuple):
    """A data set that was found: name with the config, folder of the version, what TFDS knows of it."""

    name: str
    folder: pathlib.Path
    info: Any  # tensorflow_datasets.core.DatasetInfo


def find(
    data: str,
    argument: str,
    how_to_prepare: Callable[[str, pathlib.Path], str],
    major: int | None = None,
) -> Prepared:
    """Finds the data set that `argument`, `NAME[/CONFIG][:VERSION][@DIR]`, names.

    Args:
      data: how the user has named it, for error messages.
      argument: looked for as `open_tfds` says.
      how_to_prepare: `how_to_prepare(name, data_dir)` tells how to get a data set that is not there.
      major: of versions that are taken before newer ones, unless `argument` has a version.

    Raises:
      UserError: if it is not there, or damaged.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        kind = data.partition(":")[0]
        raise UserError(
            f"data={data!r} should have the form '{kind}:NAME[:VERSION][@DIR]', a version being like 3.0.0."
        )
    data_dir = pathlib.Path(match["data_dir"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    data_dir = data_dir.expanduser()
    folder = _version_folder(data, data_dir / match["name"], match["version"], major)
    if folder is None:
        raise UserError(
            f"data={data!r}: {data_dir} has no prepared data set {match['name']}.\n"
            + how_to_prepare(match["name"], data_dir)
        )

    import tensorflow_datasets as tfds

    try:
        return Prepared(match["name"], folder, tfds.builder_from_directory(folder).info)
    except Exception as error:  # TFDS raises many kinds
        raise UserError(f"data={data!r}: {folder} is no whole TFDS data set: {error}") from error


def _version_folder(
    data: str, root: pathlib.Path, version: str | None, major: int | None
) -> pathlib.Path | None:
    """`root/version`; if that is None, the newest of `major`, else the newest; None if there is none."""
    there = sorted(
        (each for each in root.glob("*") if _VERSION.fullmatch(each.name)),
        key=lambda each: [int(number) for number in each.name.split(".")],
    )
    names = [each.name for each in there if (each / "dataset_info.json").is_file()]
    if not names:
        return None
    if version is not None and version not in names:
        raise UserError(f"data={data!r}: {root} has only the versions {', '.join(names)}.")
    preferred = [name for name in names if name.startswith(f"{major}.")]
    return root / (version or (preferred or names)[-1])


def _how_to_prepare(name: str, data_dir: pathlib.Path) -> str:
    if name in _ARCHIVES:
        return (
            f"Its published files can be read as they are: {_ARCHIVES[name]!r} in place of 'tfds:{name}'. Or "
            f"prepare it with `{build_command(name, data_dir)}`, which takes `pip install tensorflow`."
        )
    what = "imagenet --train TAR --val TAR --devkit TAR" if name.startswith("imagenet") else "folder SRC"
    return (
        f"Prepare it once with `python -m vitjax.data.prepare {what} --name {name} --out {data_dir}`,\n"
        f"or, if TFDS has it, with `{build_command(name, data_dir)}`, which takes `pip install tensorflow`,\n"
        "or run the same recipe on data=digits or data=folder:PATH (a subfolder of images a class)."
    )


def build_command(name: str, data_dir: pathlib.Path) -> str:
    """The command of TFDS that fetches and prepares a data set of its catalogue in `data_dir`."""
    return f"tfds build {name} --data_dir {data_dir} --file_format array_record"


def _feature(prepared: Prepared, name: str, kind: type) -> str:
    """The name of the only feature of a kind, or the one called as usual."""
    names = [key for key, feature in prepared.info.features.items() if type(feature) is kind]
    if name in names or len(names) == 1:
        return name if name in names else names[0]

    from vitjax.data.sources import vtab  # here, since it stands on this module

    tasks = " or ".join(f"data='vtab:{task}'" for task in vtab.tasks_on(prepared.name))
    raise UserError(
        f"{prepared.folder} has {names or 'nothing'} of the kind {kind.__name__}, where one or {name!r} is "
        "needed. Only image classification data sets can be read. "
        + (f"With a label made as in VTAB, it is {tasks}." if tasks else "")
    )


def open_splits(
    prepared: Prepared, read: Callable[[Features], dict[str, Any]], class_names: tuple[str, ...]
) -> Splits:
    """For each split of a prepared data set, a function that opens it; for `read` see `TfdsSource`."""
    file_format = prepared.info.file_format.value
    return {
        name: functools.partial(
            _open_split, f"tfds:{prepared.name}:{name}", split, file_format, read, class_names
        )
        for name, split in prepared.info.splits.items()
    }


def _open_split(
    name: str,
    split: Any,
    file_format: str,
    read: Callable[[Features], dict[str, Any]],
    class_names: tuple[str, ...],
) -> Source:
    files = [pathlib.Path(path) for path in split.filepaths]
    for file in files:
        if not file.is_file():
            raise UserError(f"{name}: {file} is missing. Fetch or prepare the data set again.")
    if file_format == "array_record":
        rows = records.ArrayRecords(files, split.shard_lengths)
    elif file_format == "tfrecord":
        rows = records.TFRecords(files)
    else:
        raise UserError(f"{name} is stored as {file_format!r}; only array_record and tfrecord can be read.")
    if len(rows) != split.num_examples:
        raise UserError(f"{name} has {len(rows)} records, but its description says {split.num_examples}.")
    return TfdsSource(name, rows, read, class_names)
