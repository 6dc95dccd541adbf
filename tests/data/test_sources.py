"""Sources: what they yield, how they are sliced, and what they say about bad input."""

import gzip
import pickle
import struct

import cv2
import numpy as np
import pytest

from vitjax.data.sources import open_source
from vitjax.data.splits import parse
from vitjax.errors import UserError


def write_image(path, value=0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


@pytest.fixture
def pets(tmp_path):
    for number in range(20):
        write_image(tmp_path / f"cat/{number}.png", number)
        write_image(tmp_path / f"dog/{number}.jpg", 100 + number)
    return tmp_path


def idx_bytes(array):
    magic = 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.tobytes()


# Split strings


@pytest.mark.parametrize("num_examples", [1, 7, 99, 1437, 1281167])
@pytest.mark.parametrize(
    "split",
    ["train", "train[:80%]", "train[80%:]", "train[33%:66%]", "train[-10%:]", "train[:0.5%]", "train[1:]"],
)
def test_slices_are_those_of_tfds(split, num_examples):
    import tensorflow_datasets as tfds

    info = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[num_examples],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="x", data_dir="/", filetype_suffix="array_record"
        ),
    )
    theirs = tfds.core.splits._rel_to_abs_instr(
        tfds.core.splits._str_to_relative_instruction(split), {"train": info}
    )
    start, stop = theirs.from_ or 0, num_examples if theirs.to is None else theirs.to
    (piece,) = parse(split, ["train"])
    if start == stop:
        with pytest.raises(UserError, match="holds no examples"):
            piece.bounds(num_examples)
    else:
        assert piece.bounds(num_examples) == (start, stop)


def test_slices_and_sums_hold_the_right_examples():
    train, test = open_source("digits"), open_source("digits", "test")
    both = open_source("digits", "train[100:-5] + test[:10]")
    assert len(both) == len(train) - 105 + 10
    for index, (source, where) in {
        0: (train, 100),
        1331: (train, 1431),
        1332: (test, 0),
        1341: (test, 9),
    }.items():
        np.testing.assert_array_equal(both[index]["image"], source[where]["image"])
        assert both[index]["label"] == source[where]["label"]
    with pytest.raises(IndexError):
        both[len(both)]
    assert both.describe(1332) == test.describe(0)


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("trian", "Did you mean 'train'.*Splits here: train, test"),
        ("train[:90%", "cannot be read"),
        ("train[5]", "cannot be read"),
        ("train[a:b]", "cannot be read"),
        ("train+", "cannot be read"),
        ("train[10%:20]", "both"),
        ("train[:0]", "holds no examples"),
        ("train[:5000]", "1437"),
    ],
)
def test_bad_splits_are_explained(split, says):
    with pytest.raises(UserError, match=says):
        open_source("digits", split)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digts", "Did you mean 'digits'"),
        ("imagenet", "Sources: .*folder:PATH"),
        ("digits:x", "form 'digits'"),
        ("folder", "form 'folder:PATH'"),
        ("folder:/nowhere", "no such folder"),
        ("arrays:/nowhere.npz", "no such file"),
    ],
)
def test_bad_sources_are_explained(data, says):
    with pytest.raises(UserError, match=says):
        open_source(data)


# Digits


def test_digits_are_those_of_scikit_learn():
    from sklearn import datasets, model_selection

    x, y = datasets.load_digits(return_X_y=True)
    x = np.rint(x.reshape(-1, 8, 8, 1) * 255 / 16)
    split = model_selection.train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
    for name, images, labels in (("train", split[0], split[2]), ("test", split[1], split[3])):
        source = open_source("digits", name)
        assert len(source) == len(labels)
        np.testing.assert_array_equal([source[i]["image"] for i in range(len(source))], images)
        np.testing.assert_array_equal([source[i]["label"] for i in range(len(source))], labels)


def test_digits_have_the_promised_types():
    source = open_source("digits")
    assert (len(source), source.num_classes, source.class_names[:2]) == (1437, 10, ("0", "1"))
    example = source[np.int64(3)]
    assert example["image"].dtype == np.uint8 and example["image"].shape == (8, 8, 1)
    assert example["label"].dtype == np.int32


def test_arrays_cannot_be_changed_by_accident():
    image = open_source("digits")[0]["image"]
    with pytest.raises(ValueError, match="read-only"):
        image += 1


def test_arrays_stay_out_of_the_pickle():
    source = open_source("digits", "train[5:]")
    data = pickle.dumps(source)
    assert len(data) < 2000
    np.testing.assert_array_equal(pickle.loads(data)[7]["image"], source[7]["image"])


# Folders


def test_folder_without_splits_is_class_mixed_in_a_fixed_order(pets):
    source = open_source(f"folder:{pets}", "train[:50%]")
    labels = [int(source[i]["label"]) for i in range(20)]
    assert 4 <= sum(labels) <= 16
    assert source.class_names == ("cat", "dog")
    files = {source.describe(i) for i in range(20)}
    rest = open_source(f"folder:{pets}", "train[50%:]")
    assert len(files | {rest.describe(i) for i in range(20)}) == 40
    again = pickle.loads(pickle.dumps(open_source(f"folder:{pets}")))
    assert [again.describe(i) for i in range(20)] == [source.describe(i) for i in range(20)]
    for i in range(20):
        assert ("dog" in source.describe(i)) == source[i]["label"]
        with open(source.describe(i), "rb") as file:
            assert file.read() == source[i]["image"]


def test_folder_order_does_not_depend_on_the_place(tmp_path):
    orders = []
    for place in ("a", "b/c"):
        for number in range(10):
            write_image(tmp_path / place / f"x/{number}.png", number)
        source = open_source(f"folder:{tmp_path / place}")
        orders.append([source.describe(i).rsplit("/", 1)[1] for i in range(10)])
    assert orders[0] == orders[1] != sorted(orders[0])


def test_folder_with_splits(tmp_path):
    for split, names in (("train", ["ape", "bee"]), ("val", ["bee"])):
        for name in names:
            write_image(tmp_path / split / name / "sub" / "1.PNG")
    assert len(open_source(f"folder:{tmp_path}")) == 2
    val = open_source(f"folder:{tmp_path}", "val")
    assert val.class_names == ("ape", "bee") and val[0]["label"] == 1
    with pytest.raises(UserError, match="Splits here: train, val"):
        open_source(f"folder:{tmp_path}", "test")
    write_image(tmp_path / "val/cow/1.png")
    with pytest.raises(UserError, match="'cow' of split 'val' is not in 'train'"):
        open_source(f"folder:{tmp_path}")


def test_empty_class_folder_is_named(pets):
    (pets / "eel").mkdir()
    with pytest.raises(UserError, match="eel holds no images"):
        open_source(f"folder:{pets}")
    (pets / "eel/notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"'eel/notes\.txt'"):
        open_source(f"folder:{pets}")


def test_foreign_files_are_passed_over_with_a_warning(pets, caplog):
    (pets / "cat/notes.txt").write_text("hello")
    (pets / "cat/.DS_Store").write_text("hello")
    assert len(open_source(f"folder:{pets}")) == 40
    assert "cat/notes.txt" in caplog.text and "1 files" in caplog.text


def test_folder_without_classes_is_explained(tmp_path):
    write_image(tmp_path / "1.png")
    with pytest.raises(UserError, match="no subfolders"):
        open_source(f"folder:{tmp_path}")


# Arrays


@pytest.mark.parametrize(
    "keys", [("images", "labels"), ("x_train", "y_train"), ("train_images", "train_labels")]
)
def test_npz(tmp_path, keys):
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    labels = np.array([[0], [1], [2], [1], [0]])
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (images, labels), strict=True)))
    source = open_source(f"arrays:{tmp_path}/a.npz")
    assert len(source) == 5 and source.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(source[3]["image"], images[3])
    assert source[3]["label"] == 1 and source[3]["label"].dtype == np.int32


def test_npz_class_names(tmp_path):
    np.savez(
        tmp_path / "a.npz", x=np.zeros((2, 3, 3), np.uint8), y=np.array([0, 1]), class_names=["a", "b", "c"]
    )
    assert open_source(f"arrays:{tmp_path}/a.npz").class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((2, 3, 8, 8), np.uint8), "labels": np.arange(2)}, "Channels-first"),
        ({"images": np.zeros((2, 8, 8, 3), np.float32), "labels": np.arange(2)}, "must be uint8"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.arange(3)}, "2 images but 3 labels"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8), "labels": np.ones(2)}, "must be integers"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "labels": np.array([10**9])}, "largest label"),
        ({"pictures": np.zeros((2, 8, 8, 3), np.uint8)}, "'pictures'"),
    ],
)
def test_bad_npz_is_explained(tmp_path, arrays, says):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=says):
        open_source(f"arrays:{tmp_path}/a.npz")


def test_pickled_npz_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    for key in ("images", "labels"):
        arrays = {"images": np.zeros((1, 2, 2), np.uint8), "labels": np.zeros(1, int)}
        arrays[key] = np.array([Bomb()], dtype=object)
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(UserError, match="Python objects are refused"):
            open_source(f"arrays:{tmp_path}/a.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 truncated"])
def test_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npz"):
        open_source(f"arrays:{tmp_path}/a.npz")


def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.arange(9))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"a\.npz cannot be read"):
        open_source(f"arrays:{tmp_path}/a.npz")


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 7), ("t10k", 3)):
        images, labels = (
            rng.integers(256, size=(count, 5, 4), dtype=np.uint8),
            np.arange(count, dtype=np.uint8),
        )
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return tmp_path


def test_idx(mnist):
    train, test = open_source(f"arrays:{mnist}"), open_source(f"arrays:{mnist}", "test")
    assert (len(train), len(test), test.num_classes) == (7, 3, 7)
    assert train[2]["image"].shape == (5, 4, 1) and train[2]["label"] == 2


def test_damaged_idx(mnist):
    images, labels = mnist / "train-images-idx3-ubyte.gz", mnist / "train-labels-idx1-ubyte"
    whole = images.read_bytes()
    for damaged in (
        whole[:-20],
        gzip.compress(gzip.decompress(whole)[:-3]),
        gzip.compress(b"\0\0\x08\x03\0"),
    ):
        images.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images.*(damaged|truncated)"):
            open_source(f"arrays:{mnist}")
    images.write_bytes(gzip.compress(b"GIF89a"))
    with pytest.raises(UserError, match="magic number"):
        open_source(f"arrays:{mnist}")
    labels.unlink()
    with pytest.raises(UserError, match="no labels"):
        open_source(f"arrays:{mnist}")


def test_two_idx_sets_in_a_folder(mnist):
    for path in list(mnist.iterdir()):
        if path.name.startswith(
            "train-images"
        ):  # the same file unpacked beside the packed one is no second set
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    assert len(open_source(f"arrays:{mnist}")) == 7
    for path in list(mnist.iterdir()):
        (mnist / f"emnist-letters-{path.name}").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="two data sets"):
        open_source(f"arrays:{mnist}")


def test_folder_without_idx(tmp_path):
    with pytest.raises(UserError, match="no IDX files"):
        open_source(f"arrays:{tmp_path}")


def test_a_bare_name_may_be_meant_as_one_of_tfds():
    with pytest.raises(UserError, match=r"'tfds:imagenet2012'"):
        open_source("imagenet2012")
