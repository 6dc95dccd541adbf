"""`vtab:TASK`: the 19 tasks of the Visual Task Adaptation Benchmark, https://arxiv.org/abs/1910.04867.

A task is a data set of TensorFlow Datasets with a label and with splits. Both are those of the reference
code, https://github.com/google-research/task_adaptation at d7630d3: the list of tasks stands there in
`scripts/run_all_tasks.sh`, the rest in the file of `task_adaptation/data/` that each task names below.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from vitjax.data import splits as split_strings
from vitjax.data.decode_ops import decode_image
from vitjax.data.sources import tfds
from vitjax.data.sources.base import Splits, register, select
from vitjax.data.sources.tfds import Features
from vitjax.errors import UserError, nearest

# From the number of examples of each split of the data set to the split strings of the task.
SplitRule = Callable[[Mapping[str, int]], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      reference: the file of the reference code.
      dataset: name in TFDS, with the config.
      major: of the version of the data set that the reference asks for. All versions with the same major have
        the same slices, says https://www.tensorflow.org/datasets/datasets_versioning.
      splits: makes `train`, `val`, `trainval`, `test`, and `train800`, `val200`, `train800val200` of VTAB-1k.
      num_classes: labels lie in `[0, num_classes)`.
      label: makes the label from the features of a record.
      reads: the features that `label` looks at.
      class_names: None if the label is a feature of the data set, whose names it then has.
      image: makes the image from the bytes of its file; left as they are unless told.
      by_hand: whether files must be fetched by hand before TFDS can prepare the data set.
    """

    reference: str
    dataset: str
    major: int
    splits: SplitRule
    num_classes: int
    label: Callable[[Features], int]
    reads: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    image: Callable[[bytes], bytes | np.ndarray] = bytes
    by_hand: bool = False


# Splits


def official_splits(sizes: Mapping[str, int]) -> dict[str, str]:
    """The splits `train`, `validation` and `test` of the data set."""
    del sizes
    return _with_1k("train", "validation", "train+validation", "test", "validation[:200]")


def cut_train(percent: int, test: str = "test") -> SplitRule:
    """The first `percent` of `train` to train with, the rest of it to validate; `test` names a split."""

    def rule(sizes: Mapping[str, int]) -> dict[str, str]:
        cut = percent * sizes["train"] // 100
        return _with_1k(f"train[:{cut}]", f"train[{cut}:]", "train", test, f"train[{cut}:{cut + 200}]")

    return rule


def cut_all(train: int, val: int) -> SplitRule:
    """`train` percent of the only split, then `val` percent, and the rest to test with."""

    def rule(sizes: Mapping[str, int]) -> dict[str, str]:
        first = train * sizes["train"] // 100
        second = first + val * sizes["train"] // 100
        return _with_1k(
            f"train[:{first}]",
            f"train[{first}:{second}]",
            f"train[:{second}]",
            f"train[{second}:]",
            f"train[{first}:{first + 200}]",
        )

    return rule


def cut_test(sizes: Mapping[str, int]) -> dict[str, str]:
    """`train` to train with, the first half of `test` to validate, the second half to test with."""
    del sizes
    return _with_1k("train", "test[:50%]", "train+test[:50%]", "test[50%:]", "test[:200]")


def _with_1k(train: str, val: str, trainval: str, test: str, val200: str) -> dict[str, str]:
    """Adds the 1,000 examples of VTAB-1k, of which 800 are always the first of the split `train`."""
    return {
        "train": train,
        "val": val,
        "trainval": trainval,
        "test": test,
        "train800": "train[:800]",
        "val200": val200,
        "train800val200": f"train[:800]+{val200}",
    }


# Labels. Numbers of class features are those of the names in the data set's builder in TFDS.

_KITTI_VEHICLES = 3  # of objects/type, the first three are Car, Van and Truck
_KITTI_METRES = (8.0, 20.0, 999.0)
_KITTI_NO_VEHICLE = 1000.0
_CLEVR_DEPTHS = (8.0, 8.5, 9.0, 9.5, 10.0)
_CLEVR_FEWEST = 3  # objects in a scene; there are up to 10


def stored(key: str, features: Features) -> int:
    """The class feature `key` as it is."""
    return features[key].int64_list.value[0]


def grouped(key: str, values_per_class: float, features: Features) -> int:
    """The class feature `key` in fewer classes, of `values_per_class` neighbouring values each."""
    return int(stored(key, features) // values_per_class)


def closest_vehicle(features: Features) -> int:
    """How many of 8, 20 and 999 m the closest vehicle is beyond; images without a vehicle are class 3.

    The distance is along the camera's axis. One of exactly 8 m is not beyond 8 m.
    """
    types = np.asarray(features["objects/type"].int64_list.value)
    distances = _third_coordinates(features["objects/location"])[types < _KITTI_VEHICLES]
    return _thresholds_below(min(distances, default=_KITTI_NO_VEHICLE), _KITTI_METRES)


def num_objects(features: Features) -> int:
    """The number of objects, 3 to 10, counted from 3."""
    return len(features["objects/size"].int64_list.value) - _CLEVR_FEWEST


def closest_object(features: Features) -> int:
    """How many of 8, 8.5, 9, 9.5 and 10 the closest object is beyond, in the units of the scene."""
    return _thresholds_below(min(_third_coordinates(features["objects/pixel_coords"])), _CLEVR_DEPTHS)


def _third_coordinates(points: Any) -> np.ndarray:
    """The depth of each point of a feature that holds `x, y, depth` of one after another."""
    return np.asarray(points.float_list.value, np.float32).reshape(-1, 3)[:, 2]


def _thresholds_below(distance: float, thresholds: tuple[float, ...]) -> int:
    return int(np.searchsorted(thresholds, distance, side="left"))


# Images


def black_and_white(image: bytes) -> np.ndarray:
    """The image of which dsprites stores ink as 1, as uint8 `[64, 64, 1]` of 0 and 255."""
    return np.where(decode_image(image, channels=1) > 0, np.uint8(255), np.uint8(0))


# Tasks


def _plain(reference: str, dataset: str, major: int, splits: SplitRule, num_classes: int, **more) -> Task:
    """A task whose label is the feature `label` of the data set."""
    label = functools.partial(stored, "label")
    return Task(reference, dataset, major, splits, num_classes, label, ("label",), **more)


def _dsprites(key: str, values: int) -> Task:
    return Task(
        "dsprites.py",
        "dsprites",
        2,
        cut_all(80, 10),
        num_classes=16,
        label=functools.partial(grouped, key, values / 16),
        reads=(key,),
        class_names=tuple(str(number) for number in range(16)),
        image=black_and_white,
    )


def _smallnorb(key: str, num_classes: int) -> Task:
    label = functools.partial(stored, key)
    return Task("smallnorb.py", "smallnorb", 2, cut_test, num_classes, label, (key,))


def _clevr(label: Callable[[Features], int], reads: str, class_names: tuple[str, ...]) -> Task:
    # Scenes of CLEVR's own test split are not public, so its validation split is what is tested on.
    splits = cut_train(90, test="validation")
    return Task("clevr.py", "clevr", 3, splits, len(class_names), label, (reads,), class_names)


TASKS = {
    # Natural
    "caltech101": _plain("caltech.py", "caltech101", 3, cut_train(90), 102),
    "cifar100": _plain("cifar.py", "cifar100", 3, cut_train(90), 100),
    "dtd": _plain("dtd.py", "dtd", 3, official_splits, 47),
    "oxford_flowers102": _plain("oxford_flowers102.py", "oxford_flowers102", 2, official_splits, 102),
    "oxford_iiit_pet": _plain("oxford_iiit_pet.py", "oxford_iiit_pet", 3, cut_train(80), 37),
    "sun397": _plain("sun397.py", "sun397/tfds", 4, official_splits, 397),
    "svhn": _plain("svhn.py", "svhn_cropped", 3, cut_train(90), 10),
    # Specialised
    "diabetic_retinopathy": _plain(
        "diabetic_retinopathy.py",
        "diabetic_retinopathy_detection/btgraham-300",
        3,
        official_splits,
        5,
        by_hand=True,
    ),
    "eurosat": _plain("eurosat.py", "eurosat/rgb", 2, cut_all(60, 20), 10),
    "patch_camelyon": _plain("patch_camelyon.py", "patch_camelyon", 2, official_splits, 2),
    "resisc45": _plain("resisc45.py", "resisc45", 3, cut_all(60, 20), 45, by_hand=True),
    # Structured
    "clevr_count": _clevr(num_objects, "objects/size", tuple(f"{count} objects" for count in range(3, 11))),
    "clevr_distance": _clevr(
        closest_object,
        "objects/pixel_coords",
        ("up to 8", "up to 8.5", "up to 9", "up to 9.5", "up to 10", "beyond 10"),
    ),
    "dmlab": _plain("dmlab.py", "dmlab", 2, official_splits, 6),
    "dsprites_orientation": _dsprites("label_orientation", values=40),
    "dsprites_x_position": _dsprites("label_x_position", values=32),
    "kitti": Task(
        "kitti.py",
        "kitti",
        3,
        official_splits,
        num_classes=4,
        label=closest_vehicle,
        reads=("objects/type", "objects/location"),
        class_names=("vehicle up to 8 m", "vehicle up to 20 m", "vehicle beyond 20 m", "no vehicle"),
    ),
    "smallnorb_azimuth": _smallnorb("label_azimuth", 18),
    "smallnorb_elevation": _smallnorb("label_elevation", 9),
}


def tasks_on(dataset: str) -> list[str]:
    """The tasks that are made of a data set, named as in TFDS with or without the config."""
    name = dataset.partition("/")[0]
    return [key for key, task in TASKS.items() if task.dataset.partition("/")[0] == name]


@register("vtab", "vtab:TASK[:VERSION][@DIR]")
def open_vtab(argument: str) -> Splits:
    """Opens a task of VTAB, from the data set that TFDS has prepared for it.

    Its splits are `train`, `val`, `trainval` and `test`, and for VTAB-1k `train800`, `val200` and
    `train800val200`. They are slices of the data set in the order in which TFDS has written it. So they are
    those of the reference if the major version is; such a one is looked for first, and of another there is a
    warning. Images are as stored, but for those of dsprites, which are uint8 `[64, 64, 1]`. `open_tfds` says
    where data sets are looked for.
    """
    data = f"vtab:{argument}"
    name = argument.partition("@")[0].partition(":")[0]
    if name not in TASKS:
        raise UserError(
            f"data={data!r}: VTAB has no task {name!r}.{nearest(name, TASKS)} Its tasks: {', '.join(TASKS)}."
        )
    task = TASKS[name]
    prepared = tfds.find(
        data, task.dataset + argument[len(name) :], functools.partial(_how_to_prepare, task), task.major
    )
    class_names = _checked_class_names(data, task, prepared)
    splits = _checked_splits(data, task, prepared)
    if not prepared.folder.name.startswith(f"{task.major}."):
        logging.warning(
            "data=%r: %s is read. The splits of VTAB are those of version %d.*; these may be other examples.",
            data,
            prepared.folder,
            task.major,
        )
    available = tfds.open_splits(prepared, functools.partial(_read, name), class_names)
    return {
        each: functools.partial(select, f"{data}:{each}", split, available) for each, split in splits.items()
    }


def _read(name: str, features: Features) -> dict[str, Any]:
    """The example that a task makes of a record."""
    task = TASKS[name]
    label = task.label(features)
    if not 0 <= label < task.num_classes:
        raise ValueError(f"its label {label} is none of the {task.num_classes} classes of vtab:{name}")
    return {"image": task.image(features["image"].bytes_list.value[0]), "label": np.int32(label)}


def _checked_class_names(data: str, task: Task, prepared: tfds.Prepared) -> tuple[str, ...]:
    """The names of the classes; refuses a data set that lacks a feature or has other classes."""
    import tensorflow_datasets

    features = prepared.info.features
    there = tensorflow_datasets.core.utils.flatten_nest_dict(features.get_serialized_info())
    missing = [key for key in ("image", *task.reads) if key not in there]
    if missing:
        raise UserError(
            f"data={data!r}: {prepared.folder} has no feature {', '.join(missing)}, so it is not "
            f"{task.dataset} of TFDS. Its features are {', '.join(there)}."
        )
    names = task.class_names or tuple(getattr(features[task.reads[0]], "names", None) or ())
    if len(names) != task.num_classes:
        raise UserError(
            f"data={data!r}: {prepared.folder} has {len(names)} classes, so it is not "
            f"{task.dataset} of TFDS, which has {task.num_classes}."
        )
    return names


def _checked_splits(data: str, task: Task, prepared: tfds.Prepared) -> dict[str, str]:
    """The split strings of the task; refuses a data set that lacks a split which they name."""
    sizes = {name: split.num_examples for name, split in prepared.info.splits.items()}
    splits = task.splits({"train": 0} | sizes)  # without `train`, the check below tells so
    try:
        for split in splits.values():
            split_strings.parse(split, sizes)
    except UserError as error:
        raise UserError(f"data={data!r}: {prepared.folder} is not whole: {error}") from None
    return splits


def _how_to_prepare(task: Task, name: str, data_dir: pathlib.Path) -> str:
    by_hand = "Some files must first be fetched by hand: see " if task.by_hand else "See "
    return (
        f"Prepare it once with `{tfds.build_command(name, data_dir)}`.\n"
        "This, and nothing else, takes TensorFlow: `pip install tensorflow`.\n"
        f"{by_hand}https://www.tensorflow.org/datasets/catalog/{name.partition('/')[0]}."
    )
