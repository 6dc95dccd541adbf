"""Prepares data sets for random access: `python -m vitjax.data.prepare {folder,arrays,imagenet} ...`.

What it writes is a TensorFlow Datasets folder of ArrayRecord files, `OUT/NAME/1.0.0`, which
`data="tfds:NAME"` reads. Neither side needs TensorFlow. TFDS's own writer does the work: it shuffles by a
hash of each example's key, so the order is fixed, chooses the shards, shows the progress, and writes into a
folder called `incomplete...` that gets its name in the end, so an interrupted preparation never looks whole.
"""

import argparse
import collections
import concurrent.futures
import io
import os
import pathlib
import re
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from vitjax.data.sources.base import splits_of
from vitjax.errors import UserError

VERSION = "1.0.0"
JPEG_QUALITY = 95


class Example(NamedTuple):
    """An encoded image with its class name; `key` is unique in its split and decides the place in it."""

    key: str
    image: bytes
    label: str
    origin: str  # where it comes from, for error messages


# For each split, a function that starts its examples.
Splits = dict[str, Callable[[], Iterable[Example]]]


def write(
    splits: Splits,
    class_names: list[str],
    *,
    out: str,
    name: str,
    description: str,
    short_side: int | None = None,
) -> pathlib.Path:
    """Writes a data set and returns its folder.

    Args:
      splits: for each split, a function that starts its examples.
      class_names: in the order of their numbers.
      out: the folder that data sets are kept in.
      name: of the data set: small letters, digits and underscores.
      description: kept in `dataset_info.json`.
      short_side: scale larger images down to this many pixels on their shorter side, and store them as JPEG.

    Raises:
      UserError: for a bad name, a data set that is there already, and what the examples raise.
    """
    import tensorflow_datasets as tfds

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"--name {name} must be small letters, digits and underscores, such as 'my_images'.")
    folder = pathlib.Path(out).expanduser() / name / VERSION
    if folder.exists():
        raise UserError(f"{folder} is there already. Remove it, or choose another --name or --out.")
    if short_side is not None:
        description += (
            f" Images with a shorter side above {short_side} px were scaled down to it (JPEG, quality 95)."
        )

    def info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=class_names),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(short_side=short_side),
        )

    def generate(self, examples):
        for example in _scaled(examples(), short_side):
            yield example.key, {"image": example.image, "label": example.label}

    members = {
        "__module__": __name__,
        "name": name,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: generate(self, each) for split, each in splits.items()
        },
        "_generate_examples": generate,
    }
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), members, skip_registration=True)
    with tempfile.TemporaryDirectory() as downloads:  # nothing is fetched, but TFDS makes a folder for it
        builder(data_dir=os.fspath(folder.parents[1]), file_format="array_record").download_and_prepare(
            download_dir=downloads
        )
    return folder


def _scaled(examples: Iterable[Example], short_side: int | None) -> Iterator[Example]:
    """Scales images down in as many threads as there are cores, keeping the order."""
    if short_side is None:
        yield from examples
        return
    workers = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = collections.deque()
        for example in examples:
            waiting.append(pool.submit(_scale, example, short_side))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _scale(example: Example, short_side: int) -> Example:
    image = decode(example)
    scale = short_side / min(image.shape[:2])
    if scale >= 1:
        return example
    height, width = (round(scale * side) for side in image.shape[:2])
    smaller = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return example._replace(image=encode_jpeg(smaller))


def decode(example: Example) -> np.ndarray:
    """Decodes any image file to RGB uint8 `[H, W, 3]`, ignoring EXIF orientation as ImageNet does."""
    data = np.frombuffer(example.image, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UserError(f"{example.origin} is no image that can be decoded. Remove or replace it.")
    return image


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encodes RGB uint8 `[H, W, 3]` as JPEG of quality 95 with full-resolution colour."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), JPEG_QUALITY, "RGB", "444")


def source_splits(data: str) -> tuple[Splits, list[str]]:
    """The examples and class names of all splits of a source, arrays encoded as PNG."""
    opened = {split: start() for split, start in splits_of(data).items()}
    names = list(next(iter(opened.values())).class_names)

    def examples(source):
        for index in range(len(source)):
            example = source[index]
            image = example["image"]
            if not 0 <= example["label"] < len(names):
                raise UserError(f"the label of {source.describe(index)} is {example['label']}: no class.")
            if not isinstance(image, bytes):
                # cv2 writes BGR; a greyscale image has one channel to reverse.
                image = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
            yield Example(f"{index:08d}", image, names[example["label"]], source.describe(index))

    return {split: (lambda source=source: examples(source)) for split, source in opened.items()}, names


class Devkit(NamedTuple):
    """What the ILSVRC 2012 development kit knows."""

    wnids: list[str]  # WordNet id of each ILSVRC id, from 1 on
    train_counts: dict[str, int]
    val_labels: list[str]  # WordNet id of each validation image, in the order of the file names


def read_devkit(path: str) -> Devkit:
    """Reads `ILSVRC2012_devkit_t12.tar.gz`.

    The ground truth of the validation images is in ILSVRC ids, whose order is not that of the sorted
    WordNet ids that number the classes everywhere else; `meta.mat` has the mapping. Nothing in it is run.
    """
    import scipy.io

    with _opened(path) as tar:
        files = {pathlib.PurePath(member.name).name: member for member in tar if member.isfile()}
        try:
            meta = _read(tar, files["meta.mat"])
            truth = _read(tar, files["ILSVRC2012_validation_ground_truth.txt"])
        except KeyError as error:
            raise UserError(f"{path} has no {error}; it should be ILSVRC2012_devkit_t12.tar.gz.") from None
    synsets = np.atleast_1d(scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
    leaves = {int(each["ILSVRC2012_ID"]): each for each in synsets if each["num_children"] == 0}
    wnids = [str(leaves[number]["WNID"]) for number in range(1, len(leaves) + 1)]
    counts = {str(each["WNID"]): int(each["num_train_images"]) for each in leaves.values()}
    return Devkit(wnids, counts, [wnids[int(number) - 1] for number in truth.split()])


def imagenet_splits(train: str | None, val: str | None, devkit_path: str | None) -> tuple[Splits, list[str]]:
    """The examples of ILSVRC 2012 from its original tars, and the WordNet ids in sorted order.

    Splits are called `train` and `validation`, as in TFDS.
    """
    if not (train or val):
        raise UserError("imagenet needs --train ILSVRC2012_img_train.tar and --val.")
    if not devkit_path:
        raise UserError(
            "imagenet needs --devkit ILSVRC2012_devkit_t12.tar.gz: it has the labels of the validation "
            "images, which their tar has not, and the number of training images of each class."
        )
    devkit = read_devkit(devkit_path)
    splits: Splits = {}
    if train:
        splits["train"] = lambda: _imagenet_train(train, devkit)
    if val:
        splits["validation"] = lambda: _imagenet_val(val, devkit)
    return splits, sorted(devkit.wnids)


def _imagenet_train(path: str, devkit: Devkit) -> Iterator[Example]:
    """A tar of one tar for each class."""
    counts: collections.Counter[str] = collections.Counter()
    with _opened(path) as outer:
        for member in outer:
            wnid = pathlib.PurePath(member.name).stem
            if wnid not in devkit.train_counts:
                raise UserError(f"{path} holds {member.name!r}, which is no class of ILSVRC 2012.")
            with _opened(f"{path}:{member.name}", io.BytesIO(_read(outer, member))) as inner:
                for image in inner:
                    counts[wnid] += 1
                    yield _plain_jpeg(Example(image.name, _read(inner, image), wnid, f"{path}:{image.name}"))
    for wnid, count in devkit.train_counts.items():
        if counts[wnid] != count:
            raise UserError(
                f"{path} is not whole: it has {counts[wnid]} images of {wnid}, which should have {count}."
            )


def _imagenet_val(path: str, devkit: Devkit) -> Iterator[Example]:
    """A tar of `ILSVRC2012_val_00000001.JPEG` and so on."""
    count = 0
    with _opened(path) as tar:
        for member in tar:
            match = re.fullmatch(r"(?:.*/)?(ILSVRC2012_val_(\d{8})\.JPEG)", member.name)
            if match is None:
                if member.isfile():
                    raise UserError(
                        f"{path} holds {member.name!r}, which is no validation image of ILSVRC 2012."
                    )
                continue
            number = int(match[2])
            if not 1 <= number <= len(devkit.val_labels):
                raise UserError(
                    f"{path} holds {member.name!r}; the devkit has {len(devkit.val_labels)} labels."
                )
            count += 1
            label = devkit.val_labels[number - 1]
            yield _plain_jpeg(Example(match[1], _read(tar, member), label, f"{path}:{match[1]}"))
    if count != len(devkit.val_labels):
        raise UserError(f"{path} is not whole: it has {count} images of {len(devkit.val_labels)}.")


def _plain_jpeg(example: Example) -> Example:
    """Stores the one PNG and the 22 CMYK files of ILSVRC 2012 as RGB JPEG, as TFDS does."""
    try:
        colours = simplejpeg.decode_jpeg_header(example.image)[2]
    except ValueError:
        colours = "no JPEG"
    if colours in ("Gray", "GRAY", "YCbCr", "RGB"):
        return example
    return example._replace(image=encode_jpeg(decode(example)))


def _opened(path: str, file: io.BytesIO | None = None) -> tarfile.TarFile:
    try:
        return tarfile.open(None if file else os.path.expanduser(path), "r", fileobj=file)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a tar file: {error}.") from error


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = tar.extractfile(member)
        data = file.read() if file else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{tar.name or 'tar'} is damaged or truncated at {member.name}: {error}.") from error
    if len(data) != member.size:
        raise UserError(f"{tar.name or 'tar'} is truncated at {member.name}. Fetch it again.")
    return data


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--out",
        default=os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"),
        help="the folder that data sets are kept in (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    shared.add_argument(
        "--short_side",
        type=int,
        metavar="PIXELS",
        help="scale images down to this shorter side: faster to read, but no longer the same images. "
        "Name the data set accordingly",
    )
    parser = argparse.ArgumentParser(
        prog="python -m vitjax.data.prepare", description="Prepares data sets for random access."
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, what in (("folder", "a folder of images"), ("arrays", "a .npz file or folder of IDX files")):
        sub = kinds.add_parser(kind, parents=[shared], help=f"prepare {what}, as data='{kind}:SRC' reads it")
        sub.add_argument("src", metavar="SRC")
        sub.add_argument("--name", required=True, help="what data='tfds:NAME' will call it")
    imagenet = kinds.add_parser(
        "imagenet", parents=[shared], help="prepare ILSVRC 2012 from its original files"
    )
    imagenet.add_argument("--train", metavar="TAR", help="ILSVRC2012_img_train.tar")
    imagenet.add_argument("--val", metavar="TAR", help="ILSVRC2012_img_val.tar")
    imagenet.add_argument("--devkit", metavar="TAR", help="ILSVRC2012_devkit_t12.tar.gz")
    imagenet.add_argument(
        "--name", help="default: imagenet2012, with --short_side 320: imagenet2012_short320"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Runs the command line; raises UserError for bad input."""
    args = _parser().parse_args(argv)
    if args.short_side is not None and args.short_side < 1:
        raise UserError(f"--short_side {args.short_side} must be a positive number of pixels.")
    if args.kind == "imagenet":
        splits, names = imagenet_splits(args.train, args.val, args.devkit)
        name = args.name or "imagenet2012" + (f"_short{args.short_side}" if args.short_side else "")
        description = "ILSVRC 2012 from its original files."
    else:
        splits, names = source_splits(f"{args.kind}:{args.src}")
        name, description = args.name, f"Prepared from {args.kind}:{pathlib.Path(args.src).name}."
    folder = write(
        splits, names, out=args.out, name=name, description=description, short_side=args.short_side
    )
    print(f"Wrote {folder}. Use it as data=tfds:{name}@{folder.parents[1]}")


if __name__ == "__main__":
    try:
        main()
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
