"""CIFAR, SVHN and Tiny-ImageNet in the files they are published as: tiny ones of the same formats."""

import contextlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile

import cv2
import numpy as np
import pytest
import scipy.io

from vitjax.data.decode_ops import decode_image
from vitjax.data.sources import open_source, plain_pickle
from vitjax.errors import UserError

NAMES = {
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "cifar100": [f"class_{i}" for i in range(100)],
}
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python",
}


class Python2Pickler(pickle._Pickler):
    """Writes all strings as Python 2 did, which the published files were written by."""

    def save_string(self, text):
        data = text.encode("latin-1") if isinstance(text, str) else text
        short = len(data) < 256
        length = len(data).to_bytes(1 if short else 4, "little")
        self.write((pickle.SHORT_BINSTRING if short else pickle.BINSTRING) + length + data)
        self.memoize(text)

    dispatch = pickle._Pickler.dispatch | {str: save_string, bytes: save_string}


def python2(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def draw(kind, count):
    rng = np.random.default_rng(count)
    images = rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(len(NAMES[kind]), size=count).astype(np.uint8)


def cifar_files(kind, version):
    """Name -> content of the files of a tiny data set: 20 images to train on, 3 to test with."""
    (images, labels), test = draw(kind, 20), draw(kind, 3)
    parts = {"train": (images, labels), "test": test}
    if kind == "cifar10":
        parts = {
            f"data_batch_{i + 1}": (images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4]) for i in range(5)
        }
        parts["test_batch"] = test
    fine, coarse = ("fine_labels", {"coarse_labels"}) if kind == "cifar100" else ("labels", set())
    if version == "python":
        meta = python2({f"{fine[:-1]}_names": NAMES[kind], "num_vis": 3072})
        files = {"meta" if kind == "cifar100" else "batches.meta": meta}
    else:
        name = "fine_label_names.txt" if kind == "cifar100" else "batches.meta.txt"
        files = {name: ("\n".join(NAMES[kind]) + "\n\n").encode()}
    for name, (images, labels) in parts.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if version == "python":
            others = {key: [7] * len(labels) for key in coarse}
            files[name] = python2(
                {"data": planes, fine: labels.tolist(), "filenames": [f"{i}.png" for i in labels], **others}
            )
        else:
            columns = [np.full((len(labels), 1), 7, np.uint8)] * len(coarse)
            rows = np.concatenate([*columns, labels[:, None], planes], axis=1)
            files[f"{name}.bin"] = rows.tobytes()
    return files


def write_tar(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(path, files):
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def assert_holds(source, images, labels, names):
    assert (len(source), list(source.class_names)) == (len(labels), names)
    np.testing.assert_array_equal([source[i]["image"] for i in range(len(source))], images)
    np.testing.assert_array_equal([source[i]["label"] for i in range(len(source))], labels)
    assert source[0]["image"].dtype == np.uint8 and source[0]["label"].dtype == np.int32


@pytest.mark.parametrize("form", ["archive", "renamed", "folder", "folder_of_folder", "folder_of_archive"])
@pytest.mark.parametrize(("kind", "version"), list(FOLDERS))
def test_cifar(kind, version, form, tmp_path):
    files, folder = cifar_files(kind, version), FOLDERS[kind, version]
    archive = tmp_path / f"{kind.replace('cifar', 'cifar-')}-{version}.tar.gz"
    if form == "folder_of_folder" or form == "folder":
        write_folder(tmp_path / folder, files)
        path = tmp_path / folder if form == "folder" else tmp_path
    else:
        path = archive.with_name("mine.tgz") if form == "renamed" else archive
        write_tar(path, folder, files)
        path = tmp_path if form == "folder_of_archive" else path
    for split, count in (("train", 20), ("test", 3)):
        source = open_source(f"{kind}:{path}", split)
        assert_holds(source, *draw(kind, count), NAMES[kind])
        again = pickle.loads(pickle.dumps(source))
        np.testing.assert_array_equal(again[1]["image"], source[1]["image"])


def test_cifar_images_without_their_names(tmp_path):
    files = cifar_files("cifar100", "binary")
    write_folder(tmp_path / "x", {name: files[name] for name in ("train.bin", "test.bin")})
    assert open_source(f"cifar100:{tmp_path}/x").class_names[98:] == ("98", "99")


@pytest.mark.parametrize("version", ["binary", "python"])
def test_a_truncated_cifar_archive(version, tmp_path):
    path = tmp_path / f"cifar-10-{version}.tar.gz"
    write_tar(path, "x", cifar_files("cifar10", version))
    whole = path.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"cifar-10-{version}.tar.gz is damaged.*MD5 is c[35]"):
            open_source(f"cifar10:{path}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda files: files.pop("data_batch_3.bin"), "it has no data_batch_3.bin"),
        (lambda files: files.pop("batches.meta.txt"), r"it has no batches\.meta\.txt"),
        (lambda files: files.update({"data_batch_2.bin": b"x" * 3074}), "3074 bytes.* whole number of 3073"),
        (
            lambda files: files.update({"data_batch_2.bin": b"x" * 3073}),
            "data_batch_2.bin has 1 images and oth",
        ),
        (lambda files: files.update({"data_batch_2.bin": b""}), "0 bytes"),
        (lambda files: files.update({"batches.meta.txt": b"cat dog"}), "2 class names, not 10"),
    ],
)
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_incomplete_cifar(form, change, says, tmp_path):
    files = cifar_files("cifar10", "binary")
    change(files)
    path = tmp_path / ("x" if form == "folder" else "cifar-10-binary.tar.gz")
    write_folder(path, files) if form == "folder" else write_tar(path, "x", files)
    if form == "folder" and "batches.meta.txt" not in files:
        return  # numbers do for a folder
    with pytest.raises(UserError, match=f"{path.name}.*{says}.*MD5 is c32a1d4ab5d03f1284b67883e8d87530"):
        open_source(f"cifar10:{path}")


def test_other_archives_and_nothing_at_all(tmp_path):
    write_tar(tmp_path / "cifar-100-binary.tar.gz", "x", cifar_files("cifar100", "binary"))
    with pytest.raises(UserError, match=r"does not hold the files of cifar-10-binary\.tar\.gz or"):
        open_source(f"cifar10:{tmp_path}/cifar-100-binary.tar.gz")
    with pytest.raises(UserError, match=r"the folder has neither cifar-10-binary\.tar\.gz or"):
        open_source(f"cifar10:{tmp_path}")
    for kind in ("cifar10", "cifar100", "svhn", "tiny_imagenet"):
        with pytest.raises(UserError, match="there is no such file or folder"):
            open_source(f"{kind}:{tmp_path}/nowhere")


def test_who_has_no_tfds_is_told_of_the_archives(tmp_path):
    with pytest.raises(UserError, match="'cifar10:PATH' in place of 'tfds:cifar10'"):
        open_source(f"tfds:cifar10@{tmp_path}")


# Pickles


class Call:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_pickles_of_this_python_are_read_too(protocol):
    value = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "column_major": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "big_endian": np.arange(3, dtype=">f8"),
        "labels": [1, 300, 70_000, -5, 2**40],
        "more": (None, True, False, 1.5, "grün", b"\xff", (), [], {}, (1,), (1, 2), (1, 2, 3, 4)),
    }
    read = plain_pickle.load_dict(pickle.dumps(value, protocol))
    assert list(read) == ["data", *list(value)[1:]]
    for key, item in value.items():
        ours = read[key if isinstance(key, str) else key.decode()]
        if isinstance(item, np.ndarray):
            np.testing.assert_array_equal(ours, item)
            assert ours.dtype == item.dtype
        else:
            assert ours == item


def test_pickles_of_python_2_are_read_as_pickle_reads_them():
    data = cifar_files("cifar10", "python")["data_batch_1"]
    ours, theirs = plain_pickle.load_dict(data), pickle.loads(data, encoding="latin1")
    assert ours.keys() == theirs.keys() and ours["filenames"] == theirs["filenames"]
    np.testing.assert_array_equal(ours["data"], theirs["data"])


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("where", ["value", "key", "in_list", "array", "instead"])
def test_a_pickle_that_calls_something_is_refused_and_not_run(protocol, where, tmp_path):
    made = tmp_path / "made"
    call = Call(os.mkdir, str(made))
    value = {
        "value": {"data": call},
        "key": {call: 1},
        "in_list": {"labels": [1, call]},
        "array": {"data": np.array([call], dtype=object)},
        "instead": call,
    }[where]
    data = pickle.dumps(value, protocol)
    with pytest.raises(ValueError, match=r"posix\.mkdir|nt\.mkdir|instruction|an array of"):
        plain_pickle.load_dict(data)
    assert not made.exists()
    if not (protocol == 0 or where == "key"):
        pickle.loads(data)  # so it would have
        assert made.exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"x": Call(eval, "1")}, "__builtin__.eval"),
        ({"x": Call(np.dtype, "O")}, "an array of 'O'"),
        ({"x": Call(np.dtype, [("a", "u1")])}, "an array of"),
        ({"x": Call(np.ndarray, (10**9, 10**9))}, "calls 'numpy ndarray'"),
        ({"x": Call(np.load, "file")}, "numpy.*load"),
        ([1], "it holds a list"),
        ({"x": {1, 2}}, "__builtin__.set"),
        ({"x": np.float64(1)}, "scalar"),
    ],
)
def test_what_is_no_plain_data_is_named(value, says):
    with pytest.raises(ValueError, match=says):
        plain_pickle.load_dict(pickle.dumps(value, 2))


@pytest.mark.filterwarnings("ignore:invalid escape")
def test_no_damage_to_a_pickle_escapes():
    """Cut at any place, or a byte replaced: a ValueError or a dict, and never another error or call."""
    data = python2({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2], "name": "x" * 300})
    for length in range(len(data) - 1):
        with pytest.raises(ValueError):
            plain_pickle.load_dict(data[:length])
    rng = np.random.default_rng(0)
    for _ in range(3000):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(ValueError):
            plain_pickle.load_dict(bytes(broken))


def test_a_malicious_cifar_archive_is_named(tmp_path):
    files = cifar_files("cifar10", "python")
    files["data_batch_4"] = pickle.dumps({"data": Call(os.mkdir, str(tmp_path / "made"))}, 2)
    write_tar(tmp_path / "cifar-10-python.tar.gz", "x", files)
    with pytest.raises(UserError, match=r"data_batch_4: it asks for '(posix|nt)\.mkdir'.*Fetch it again"):
        open_source(f"cifar10:{tmp_path}/cifar-10-python.tar.gz")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((2, 3072), np.uint8), "labels": [1]},
        {"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]},
        {"data": np.zeros((2, 3000), np.uint8), "labels": [1, 2]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]},
        {"labels": [1, 2]},
    ],
)
def test_a_cifar_pickle_of_something_else(batch, tmp_path):
    files = cifar_files("cifar10", "python")
    files["test_batch"] = python2(batch)
    write_folder(tmp_path / "x", files)
    assert len(open_source(f"cifar10:{tmp_path}/x")) == 20
    with pytest.raises(
        UserError, match=r"test_batch does not hold 'data'.*Unpack cifar-10-python\.tar\.gz again"
    ):
        open_source(f"cifar10:{tmp_path}/x", "test")


# SVHN


@pytest.fixture
def svhn(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(32, 32, 3, 11), dtype=np.uint8)
    labels = np.array([[10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]], np.uint8).T
    for split in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": labels}, do_compression=True)
    return tmp_path, images


def test_svhn(svhn):
    folder, images = svhn
    digits = [str(digit) for digit in range(10)]
    for data in (f"svhn:{folder}", f"svhn:{folder}/train_32x32.mat"):
        source = open_source(data)
        assert_holds(source, images.transpose(3, 0, 1, 2), [*range(10), 0], digits)
    with pytest.raises(UserError, match="Splits here: train, test"):
        open_source(f"svhn:{folder}", "extra")
    with pytest.raises(UserError, match=r"there is no train_32x32\.mat"):
        open_source(f"svhn:{folder.parent}")


def test_damaged_svhn(svhn):
    folder, images = svhn
    file = folder / "train_32x32.mat"
    whole = file.read_bytes()
    for broken in (b"", b"no mat", whole[:200], whole[: len(whole) // 2], whole[:-300]):
        file.write_bytes(broken)
        with pytest.raises(
            UserError, match=r"train_32x32\.mat is damaged.*MD5 is e26dedcc434d2e4c54c9b2d4a06d8373"
        ):
            open_source(f"svhn:{folder}")
    for labels in (np.zeros((11, 1)), np.zeros((11, 1), np.uint8), np.ones((10, 1), np.uint8)):
        scipy.io.savemat(file, {"X": images, "y": labels})
        with pytest.raises(UserError, match=r"train_32x32\.mat is damaged.*(labels|belong)"):
            open_source(f"svhn:{folder}")


# Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path):
    """A folder with classes n00000001 and n00000002, three images each to train on and two in `val`."""
    root = tmp_path / "tiny-imagenet-200"
    for number in (1, 2):
        images = root / f"train/n0000000{number}/images"
        images.mkdir(parents=True)
        (images.parent / f"n0000000{number}_boxes.txt").write_text("boxes")
        for i in range(3):
            cv2.imwrite(
                str(images / f"n0000000{number}_{i}.JPEG"), np.full((64, 64, 3), 80 * number, np.uint8)
            )
    for folder in ("val", "test"):
        (root / folder / "images").mkdir(parents=True)
        for i in range(2):
            image = np.full((64, 64, 3), 80 * (i + 1), np.uint8)
            cv2.imwrite(str(root / folder / "images" / f"{folder}_{i}.JPEG"), image)
    (root / "val/val_annotations.txt").write_text(
        "val_0.JPEG\tn00000001\t0\t32\t44\t62\nval_1.JPEG\tn00000002\t0\t0\t1\t1\n"
    )
    (root / "words.txt").write_text("n00000001\tgoldfish, Carassius auratus\nn00000009\tentity\n")
    (root / "wnids.txt").write_text("n00000002\nn00000001\n")
    return root


def zipped(root, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return path


def test_tiny_imagenet(tiny, tmp_path):
    archive = zipped(tiny, tmp_path / "mine.zip")
    seen = []
    for path in (tiny, tmp_path, archive):
        train, val = (open_source(f"tiny_imagenet:{path}", split) for split in ("train", "val"))
        assert (len(train), len(val)) == (6, 2)
        assert train.class_names == val.class_names == ("goldfish, Carassius auratus", "n00000002")
        for source in (train, val, pickle.loads(pickle.dumps(train))):
            for i in range(len(source)):
                image = decode_image(source[i]["image"])
                assert image.shape == (64, 64, 3) and image.mean() == 80 * (1 + source[i]["label"])
        seen.append([train.describe(i).rpartition("/")[2] for i in range(6)])
        assert train.describe(0).startswith(str(archive if path == archive else tiny))
    assert seen[0] == seen[1] == seen[2] != sorted(seen[0])
    with pytest.raises(UserError, match="Splits here: train, val"):
        open_source(f"tiny_imagenet:{tiny}", "test")


def test_tiny_imagenet_with_val_in_class_folders(tiny):
    for i in range(2):
        folder = tiny / f"val/n0000000{i + 1}"
        folder.mkdir()
        shutil.move(tiny / f"val/images/val_{i}.JPEG", folder)
    val = open_source(f"tiny_imagenet:{tiny}", "val")
    labels = {val.describe(i).rpartition("val/")[2]: val[i]["label"] for i in range(2)}
    assert labels == {"n00000001/val_0.JPEG": 0, "n00000002/val_1.JPEG": 1}


def test_damaged_tiny_imagenet(tiny, tmp_path):
    archive = zipped(tiny, tmp_path / "tiny.zip")
    whole = archive.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], whole[:-30]):
        archive.write_bytes(broken)
        with pytest.raises(UserError, match=r"tiny\.zip is damaged.*MD5 is 90528d7ca1a48142e341f4ef8d21d0de"):
            open_source(f"tiny_imagenet:{archive}")
    flipped = bytearray(whole)
    start = whole.index(b"n00000001_0.JPEG") + 100  # inside an image
    flipped[start : start + 8] = bytes(8)
    archive.write_bytes(flipped)
    source = open_source(f"tiny_imagenet:{archive}")
    with pytest.raises(UserError, match=r"tiny\.zip is damaged.*JPEG"):
        [source[i] for i in range(len(source))]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("val_0.JPEG\tn00000001\n", "val/images/val_1.JPEG has no line"),
        ("val_0.JPEG\tn00000001\nval_1.JPEG\tn00000002\nval_2.JPEG\tn00000001\n", "val_2.JPEG is not there"),
        ("val_0.JPEG\tn00000001\nval_1.JPEG\tn00000003\n", "class n00000003 of val is none of the 2"),
        ("val_0.JPEG\n", "has the line 'val_0.JPEG'"),
    ],
)
def test_annotations_that_do_not_fit(tiny, lines, says):
    (tiny / "val/val_annotations.txt").write_text(lines)
    with pytest.raises(UserError, match=f"tiny-imagenet-200 is damaged.*{says}.*Fetch it again"):
        open_source(f"tiny_imagenet:{tiny}", "val")


def test_tiny_imagenet_that_is_something_else(tiny):
    shutil.rmtree(tiny / "train")
    (tiny / "train").mkdir()
    with pytest.raises(UserError, match="no images train/nXXXXXXXX"):
        open_source(f"tiny_imagenet:{tiny}")
    with pytest.raises(UserError, match=r"neither tiny-imagenet-200\.zip nor"):
        open_source(f"tiny_imagenet:{tiny}/val")
