"""`tfds:NAME`: data sets in the layout of TensorFlow Datasets, read without TensorFlow."""

import functools
import os
import pathlib
import re
from typing import Any

import numpy as np

from vitjax.data.sources import records
from vitjax.data.sources.base import Source, Splits, register
from vitjax.errors import UserError

_ARGUMENT = re.compile(r"(?P<name>[\w./-]+?)(:(?P<version>\d+\.\d+\.\d+))?(@(?P<data_dir>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class TfdsSource(Source):
    """One split of a prepared data set, as encoded images.

    A record is a serialised `tf.train.Example`, in which TFDS stores an image as the bytes of its file and a
    class label as an integer. Just these two are read, whatever other features there are.
    """

    def __init__(self, name: str, rows: records.Records, keys: tuple[str, str], class_names: tuple[str, ...]):
        self.name = name
        self.class_names = class_names
        self._rows = rows
        self._keys = keys

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from google.protobuf import message
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        image, label = self._keys
        try:
            feature = tf_example_pb2.Example.FromString(self._rows[index]).features.feature
            return {
                "image": feature[image].bytes_list.value[0],
                "label": np.int32(feature[label].int64_list.value[0]),
            }
        except (message.DecodeError, IndexError) as error:
            raise OSError(f"damaged record: {error}") from error


@register("tfds", "tfds:NAME[/CONFIG][:VERSION][@DIR]")
def open_tfds(argument: str) -> Splits:
    """Opens a data set that TFDS or `python -m vitjax.data.prepare` has prepared.

    Its files are ArrayRecord or TFRecord. It is looked for in `DIR`, else in `$TFDS_DATA_DIR`, else in
    `~/tensorflow_datasets`; the newest version is taken unless one is named. It must have one image and one
    class label.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        raise UserError(f"data='tfds:{argument}' should have the form 'tfds:NAME[/CONFIG][:VERSION][@DIR]'.")
    data_dir = match["data_dir"] or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = _version_folder(match["name"], match["version"], pathlib.Path(data_dir).expanduser())

    import tensorflow_datasets as tfds  # here, since it takes a second

    try:
        info: Any = tfds.builder_from_directory(folder).info
    except Exception as error:  # TFDS raises many kinds
        raise UserError(f"data='tfds:{argument}': {folder} is no whole TFDS data set: {error}") from error
    keys = (
        _feature(folder, info.features, "image", tfds.features.Image),
        _feature(folder, info.features, "label", tfds.features.ClassLabel),
    )
    class_names = tuple(info.features[keys[1]].names)
    file_format = info.file_format.value
    return {
        split: functools.partial(
            _open_split, f"tfds:{match['name']}:{split}", info.splits[split], file_format, keys, class_names
        )
        for split in info.splits
    }


def _version_folder(name: str, version: str | None, data_dir: pathlib.Path) -> pathlib.Path:
    """`data_dir/name/version`, the newest version that is there if none is named."""
    there = sorted(
        (each for each in (data_dir / name).glob("*") if _VERSION.fullmatch(each.name)),
        key=lambda each: [int(number) for number in each.name.split(".")],
    )
    there = [each for each in there if (each / "dataset_info.json").is_file()]
    if version is not None and there and version not in [each.name for each in there]:
        raise UserError(
            f"data='tfds:{name}:{version}': {data_dir / name} has only the versions "
            f"{', '.join(each.name for each in there)}."
        )
    if not there:
        what = "imagenet --train TAR --val TAR --devkit TAR" if name.startswith("imagenet") else "folder SRC"
        raise UserError(
            f"data='tfds:{name}': {data_dir} has no prepared data set of this name.\n"
            f"Prepare it once with `python -m vitjax.data.prepare {what} --name {name} --out {data_dir}`,\n"
            "or run the same recipe on data=digits or data=folder:PATH (a subfolder of images a class)."
        )
    return data_dir / name / version if version else there[-1]


def _feature(folder: pathlib.Path, features: Any, name: str, kind: type) -> str:
    """The name of the only feature of a kind, or the one called as usual."""
    names = [key for key, feature in features.items() if type(feature) is kind]
    if name in names or len(names) == 1:
        return name if name in names else names[0]
    raise UserError(
        f"{folder} has {names or 'nothing'} of the kind {kind.__name__}, where one or {name!r} is "
        "needed. Only image classification data sets can be read."
    )


def _open_split(
    name: str, split: Any, file_format: str, keys: tuple[str, str], class_names: tuple[str, ...]
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
    return TfdsSource(name, rows, keys, class_names)
