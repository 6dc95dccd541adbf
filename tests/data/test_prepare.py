"""Preparation writes what `tfds:NAME` reads, from folders, arrays and the original ImageNet files."""

import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest
import scipy.io

from vitjax.data import prepare
from vitjax.data.sources import open_source
from vitjax.errors import UserError

# In the order of their ILSVRC ids, which is not the sorted one.
WNIDS = ["n02119789", "n01440764", "n02100735"]
TRUTH = [3, 1, 2, 2, 1]


def jpeg(value, size=(8, 10)):
    rng = np.random.default_rng(value)
    return cv2.imencode(".jpg", rng.integers(0, 256, (*size, 3), np.uint8))[1].tobytes()


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            add(tar, name, data)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Tiny files in the layout of the originals: 3 classes of 4 images, 5 validation images."""
    root = tmp_path_factory.mktemp("originals")
    classes = {
        f"{wnid}.tar": tar_of({f"{wnid}_{i}.JPEG": jpeg(10 * k + i) for i in range(4)})
        for k, wnid in enumerate(WNIDS)
    }
    (root / "train.tar").write_bytes(tar_of(classes))
    (root / "val.tar").write_bytes(
        tar_of({f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(100 + i) for i in range(len(TRUTH))})
    )
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8"), ("num_train_images", "f8")]
    rows = [(i + 1, wnid, 0, 4) for i, wnid in enumerate(WNIDS)] + [(4, "n00001740", 3, 0)]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=kinds)[:, None]})
    with tarfile.open(root / "devkit.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{label}\n" for label in TRUTH).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return root


@pytest.fixture(scope="module")
def imagenet(originals, tmp_path_factory):
    out = tmp_path_factory.mktemp("imagenet")
    prepare.main(imagenet_arguments(originals, out))
    return out


def imagenet_arguments(originals, out, **changed):
    files = {"train": "train.tar", "val": "val.tar", "devkit": "devkit.tar.gz"}
    paths = {key: str(originals / name) for key, name in files.items()} | changed
    return ["imagenet", *[f"--{key}={path}" for key, path in paths.items()], f"--out={out}"]


@pytest.fixture
def pets(tmp_path):
    for split, count in (("train", 12), ("val", 4)):
        for number in range(count):
            path = tmp_path / "src" / split / ("cat", "dog")[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number, size=(40, 50)))
    return tmp_path / "src"


def read(data, split="train"):
    source = open_source(data, split)
    return source, [source[i] for i in range(len(source))]


def test_folder(pets, tmp_path, monkeypatch, capsys):
    prepare.main(["folder", str(pets), "--out", str(tmp_path / "out"), "--name", "pets"])
    assert f"data=tfds:pets@{tmp_path / 'out'}" in capsys.readouterr().out
    source, examples = read(f"tfds:pets@{tmp_path / 'out'}")
    _, originals = read(f"folder:{pets}")
    assert source.class_names == ("cat", "dog")
    pairs = [(each["image"], int(each["label"])) for each in examples]
    assert sorted(pairs) == sorted((each["image"], int(each["label"])) for each in originals)
    assert 0 < np.argmax([label for _, label in pairs]) + np.argmin([label for _, label in pairs]) < 12
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "out"))
    assert len(open_source("tfds:pets:1.0.0", "train[50%:]+val")) == 10
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["image"] == source[3]["image"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pets"]
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]


def test_preparing_twice_gives_the_same_files_wherever_the_source_lies(pets, tmp_path):
    moved = tmp_path / "elsewhere"
    for src, out in ((pets, tmp_path / "a"), (moved, tmp_path / "b")):
        if src is moved:
            pets.rename(moved)
        prepare.main(["folder", str(src), "--out", str(out), "--name", "pets"])
    first, second = (
        [each["image"] for each in read(f"tfds:pets@{tmp_path / place}")[1]] for place in ("a", "b")
    )
    assert first == second


def test_short_side_is_named_in_the_info(pets, tmp_path):
    prepare.main(["folder", str(pets), "--out", str(tmp_path), "--name", "pets32", "--short_side", "32"])
    _, examples = read(f"tfds:pets32@{tmp_path}")
    for example in examples:
        assert cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR).shape == (32, 40, 3)
    info = json.loads((tmp_path / "pets32/1.0.0/dataset_info.json").read_text())
    assert "32 px" in info["description"]
    assert json.loads((tmp_path / "pets32/1.0.0/metadata.json").read_text()) == {"short_side": 32}


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_keep_their_pixels(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4, channels), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(6))
    prepare.main(["arrays", str(tmp_path / "a.npz"), "--out", str(tmp_path), "--name", "tiny"])
    for example in read(f"tfds:tiny@{tmp_path}")[1]:
        encoded = np.frombuffer(example["image"], np.uint8)
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(image, np.broadcast_to(images[example["label"]], (5, 4, 3)))


def test_imagenet(imagenet):
    source, examples = read(f"tfds:imagenet2012@{imagenet}")
    assert source.class_names == tuple(sorted(WNIDS)) and len(source) == 12
    for example in examples:
        wnid = source.class_names[example["label"]]
        assert example["image"] in [jpeg(10 * WNIDS.index(wnid) + i) for i in range(4)]
    source, examples = read(f"tfds:imagenet2012@{imagenet}", "validation")
    labels = {example["image"]: source.class_names[example["label"]] for example in examples}
    assert labels == {jpeg(100 + i): WNIDS[number - 1] for i, number in enumerate(TRUTH)}


def test_unusual_files_of_imagenet_become_rgb_jpeg(tmp_path):
    image = np.full((4, 4, 3), (10, 200, 90), np.uint8)
    png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    plain = prepare._plain_jpeg(prepare.Example("key", png, "label", "origin"))
    assert plain.image.startswith(b"\xff\xd8")
    np.testing.assert_allclose(prepare.decode(plain), image, atol=3)
    from PIL import Image

    Image.fromarray(image).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    cmyk = prepare._plain_jpeg(
        prepare.Example("key", (tmp_path / "cmyk.jpg").read_bytes(), "label", "origin")
    )
    np.testing.assert_allclose(prepare.decode(cmyk), image, atol=3)
    assert Image.open(io.BytesIO(cmyk.image)).mode == "RGB"
    grey = cv2.imencode(".jpg", image[..., 0])[1].tobytes()
    for data in (grey, jpeg(3)):
        assert prepare._plain_jpeg(prepare.Example("key", data, "label", "origin")).image == data


# Bad input leaves nothing that looks whole


def nothing_prepared(out):
    return not list(out.glob("*/*")) if out.exists() else True


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"train": "missing.tar"}, "no such file"),
        ({"train": "cut.tar"}, r"cut\.tar.*(truncated|damaged|whole)"),
        ({"train": "fewer.tar"}, "not whole: it has 0 images of n02100735, which should have 4"),
        ({"val": "fewer_val.tar"}, "not whole: it has 4 images of 5"),
        ({"val": "train.tar"}, "'n02119789.tar', which is no validation image"),
        ({"train": "val.tar"}, "no class of ILSVRC 2012"),
        ({"devkit": "val.tar"}, "should be ILSVRC2012_devkit_t12"),
        ({"devkit": "text.tar"}, "cannot be read as a tar file"),
    ],
)
def test_bad_originals_are_explained(originals, tmp_path, damage, says):
    whole = (originals / "train.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (tmp_path / "text.tar").write_text("no tar")
    for name, source, last in (("fewer.tar", "train.tar", 2), ("fewer_val.tar", "val.tar", 4)):
        with tarfile.open(originals / source) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()[:last]}
        (tmp_path / name).write_bytes(tar_of(files))
    for name in ("train.tar", "val.tar"):
        (tmp_path / name).write_bytes((originals / name).read_bytes())
    changed = {key: str(tmp_path / name) for key, name in damage.items()}
    with pytest.raises(UserError, match=says):
        prepare.main(imagenet_arguments(originals, tmp_path / "out", **changed))
    assert nothing_prepared(tmp_path / "out")


def test_validation_needs_the_devkit(originals, tmp_path):
    with pytest.raises(UserError, match="--devkit"):
        prepare.main(["imagenet", "--val", str(originals / "val.tar"), "--out", str(tmp_path)])


def test_other_bad_input(pets, tmp_path):
    arguments = ["folder", str(pets), "--out", str(tmp_path), "--name", "pets"]
    with pytest.raises(UserError, match="small letters"):
        prepare.main([*arguments[:-1], "My pets"])
    with pytest.raises(UserError, match="--short_side 0"):
        prepare.main([*arguments, "--short_side", "0"])
    broken = pets / "train/cat/0.jpg"
    broken.write_text("no image")
    with pytest.raises(UserError, match=r"train/cat/0\.jpg is no image"):
        prepare.main([*arguments, "--short_side", "8"])
    assert nothing_prepared(tmp_path / "pets")
    broken.unlink()
    prepare.main(arguments)
    with pytest.raises(UserError, match="there already"):
        prepare.main(arguments)


def test_errors_of_the_command_line_are_one_paragraph(tmp_path):
    command = [
        sys.executable,
        "-m",
        "vitjax.data.prepare",
        "folder",
        "/nowhere",
        "--name",
        "x",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data='folder:/nowhere': there is no such folder.")
    assert "Traceback" not in done.stderr


# Reading


def test_absent_data_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError) as caught:
        open_source(f"tfds:imagenet2012@{tmp_path}")
    for part in ("python -m vitjax.data.prepare imagenet", str(tmp_path), "data=digits", "data=folder:PATH"):
        assert part in str(caught.value)


def test_versions_and_damage(imagenet, tmp_path):
    with pytest.raises(UserError, match=r"only the versions 1\.0\.0"):
        open_source(f"tfds:imagenet2012:5.1.0@{imagenet}")
    with pytest.raises(UserError, match="Splits here: train, validation"):
        open_source(f"tfds:imagenet2012@{imagenet}", "val")
    half = tmp_path / "imagenet2012/1.0.0"
    half.mkdir(parents=True)
    interrupted = tmp_path / "imagenet2012/incomplete.ABC_2.0.0"
    interrupted.mkdir()
    (interrupted / "dataset_info.json").write_text("{}")
    for path in (imagenet / "imagenet2012/1.0.0").iterdir():
        if "validation" not in path.name:
            (half / path.name).write_bytes(path.read_bytes())
    assert len(open_source(f"tfds:imagenet2012@{tmp_path}")) == 12
    with pytest.raises(UserError, match=r"validation.*is missing"):
        open_source(f"tfds:imagenet2012@{tmp_path}", "validation")
    (half / "features.json").write_text("{")
    with pytest.raises(UserError, match="no whole TFDS data set"):
        open_source(f"tfds:imagenet2012@{tmp_path}")


def as_tfrecord(folder, split):
    """Rewrites a prepared split as TFDS stores TFRecords; checksums are not looked at."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    (source,) = folder.glob(f"*-{split}.array_record-*")
    records = ArrayRecordDataSource(str(source))
    target = source.with_name(source.name.replace("array_record", "tfrecord"))
    with open(target, "wb") as file:
        for index in range(len(records)):
            record = records[index]
            file.write(struct.pack("<QI", len(record), 0) + record + b"\0\0\0\0")
    return target


def test_tfrecord(imagenet, tmp_path):
    folder = tmp_path / "imagenet2012/1.0.0"
    folder.mkdir(parents=True)
    for path in (imagenet / "imagenet2012/1.0.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file = as_tfrecord(folder, "train")
    info = (folder / "dataset_info.json").read_text().replace('"array_record"', '"tfrecord"')
    (folder / "dataset_info.json").write_text(info)
    source, examples = read(f"tfds:imagenet2012@{tmp_path}")
    assert examples == read(f"tfds:imagenet2012@{imagenet}")[1]
    assert pickle.loads(pickle.dumps(source))[5] == examples[5]
    whole = file.read_bytes()
    file.write_bytes(whole[:12] + b"\xff" * 200 + whole[212:])
    with pytest.raises(OSError, match="damaged record"):
        open_source(f"tfds:imagenet2012@{tmp_path}")[0]
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole + b"\1"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged or truncated at byte"):
            open_source(f"tfds:imagenet2012@{tmp_path}")
