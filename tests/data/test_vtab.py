"""The 19 tasks of VTAB: labels, splits and classes against those of the reference code."""

import pickle
import shutil
import sys

import cv2
import numpy as np
import pytest

from vitjax.data import splits
from vitjax.data.decode_ops import decode_image
from vitjax.data.sources import open_source
from vitjax.data.sources.vtab import TASKS
from vitjax.errors import UserError


def builder_class(dataset):
    import tensorflow_datasets as tfds

    return tfds.builder_cls(dataset.partition("/")[0])


def config_of(dataset):
    return {"config": dataset.partition("/")[2]} if "/" in dataset else {}


def write(data_dir, dataset, examples):
    """Prepares a data set with the features of its real builder in TFDS.

    Examples stand in the order in which TFDS puts them, by a hash of their keys.
    """
    real = builder_class(dataset)
    members = {
        "__module__": real.__module__,
        "name": real.name,
        "_split_generators": lambda self, manager: {
            split: self._generate_examples(rows) for split, rows in examples.items()
        },
        "_generate_examples": lambda self, rows: enumerate(rows),
    }
    made = type(real.__name__, (real,), members, skip_registration=True)
    builder = made(data_dir=data_dir, file_format="array_record", **config_of(dataset))
    builder.download_and_prepare(download_dir=data_dir / "downloads")
    return data_dir


def png(value, shape=(4, 6, 3)):
    return cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tobytes()


def examples_of(data, split):
    source = open_source(data, split)
    return source, [source[index] for index in range(len(source))]


def pixel(example):
    """The value of an image of one colour, which says which of the written ones it is."""
    return int(decode_image(example["image"])[0, 0, 0])


# Labels


def kitti_example(number, objects):
    """`objects` are pairs of type and distance; what lies to the side is nearer, and must not count."""
    import tensorflow_datasets as tfds

    return {
        "image": png(number),
        "image/file_name": f"{number:06d}.png",
        "objects": [
            {
                "type": kind,
                "truncated": 0.5,
                "occluded": 1,
                "alpha": 0.25,
                "bbox": tfds.features.BBox(0.1, 0.2, 0.3, 0.4),
                "dimensions": [1.0, 2.0, 3.0],
                "location": [-30.0, -2.0, distance],
                "rotation_y": 0.1,
            }
            for kind, distance in objects
        ],
    }


ABOVE_8 = float(np.nextafter(np.float32(8), np.float32(9)))
ABOVE_20 = float(np.nextafter(np.float32(20), np.float32(21)))
# By hand from _closest_vehicle_distance_pp of kitti.py, whose thresholds are -100, 8, 20 and 999: the label
# is the place of the last one that the distance is strictly beyond, which is 1000 m without a vehicle.
KITTI = [
    ([("Car", 1.0)], 0),
    ([("Car", 8.0)], 0),
    ([("Car", ABOVE_8)], 1),
    ([("Van", 10.0)], 1),
    ([("Truck", 20.0)], 1),
    ([("Truck", ABOVE_20)], 2),
    ([("Car", 30.0), ("Van", 1.0)], 0),
    ([("Pedestrian", 3.0), ("Car", 30.0), ("Tram", 2.0)], 2),
    ([("Pedestrian", 3.0), ("Person_sitting", 3.0), ("Cyclist", 3.0), ("Tram", 3.0), ("Misc", 3.0)], 3),
    ([], 3),
    ([("Car", -1.5)], 0),
]


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    rows = [kitti_example(number, objects) for number, (objects, _) in enumerate(KITTI)]
    split = {"train": rows[:9], "validation": rows[9:10], "test": rows[10:]}
    return write(tmp_path_factory.mktemp("kitti"), "kitti", split)


def test_kitti(kitti):
    source, examples = examples_of(f"vtab:kitti@{kitti}", "train+val+test")
    assert sorted(pixel(example) for example in examples) == list(range(len(KITTI)))
    for example in examples:
        assert example["label"] == KITTI[pixel(example)][1] and example["label"].dtype == np.int32
    assert source.num_classes == 4 and source.class_names[3] == "no vehicle"
    assert [pixel(each) for each in examples[9:]] == [9, 10]
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorflow"]


def test_sources_travel_to_worker_processes(kitti):
    source = open_source(f"vtab:kitti@{kitti}", "trainval")
    data = pickle.dumps(source)
    assert len(data) < 5000
    assert pickle.loads(data)[9] == source[9]
    assert source.describe(9) == "example 0 of tfds:kitti:validation"


def clevr_example(number, depths):
    return {
        "image": png(number),
        "file_name": f"{number}.png",
        "objects": [
            {
                "color": "red",
                "material": "metal",
                "shape": "cube",
                "size": "large",
                "rotation": 0.5,
                "3d_coords": [1.0, 2.0, 3.0],
                "pixel_coords": [5.0, 6.0, depth],
            }
            for depth in depths
        ],
        "question_answer": [{"question": "How many?", "answer": "3"}] * number,
    }


def above(depth):
    return float(np.nextafter(np.float32(depth), np.float32(100)))


# By hand from clevr.py: the number of objects less 3, and the place of the last of 0, 8, 8.5, 9, 9.5 and 10
# that the least depth is strictly beyond.
CLEVR = [
    ([11.0, 7.5, 12.0], 0, 0),
    ([8.0] * 4, 1, 0),
    ([above(8.0)] * 5, 2, 1),
    ([10.0, 8.5, 9.0, 9.5, 11.0, 12.0], 3, 1),
    ([9.0, above(8.5), 9.5, 9.5, 9.5, 9.5, 9.5], 4, 2),
    ([above(9.0), 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0], 5, 3),
    ([10.0] * 9, 6, 4),
    ([above(10.0)] * 10, 7, 5),
]


@pytest.fixture(scope="module")
def clevr(tmp_path_factory):
    rows = [clevr_example(number, depths) for number, (depths, _, _) in enumerate(CLEVR)]
    hidden = [clevr_example(99, [])]
    return write(
        tmp_path_factory.mktemp("clevr"), "clevr", {"train": rows[:6], "validation": rows[6:], "test": hidden}
    )


def test_clevr(clevr):
    for task, which, num_classes in (("clevr_count", 1, 8), ("clevr_distance", 2, 6)):
        source, examples = examples_of(f"vtab:{task}@{clevr}", "train+val+test")
        assert sorted(pixel(example) for example in examples) == list(range(len(CLEVR)))
        for example in examples:
            assert example["label"] == CLEVR[pixel(example)][which]
        assert source.num_classes == num_classes
        # 90 % of 6 are 5; what is tested on is what TFDS calls `validation`.
        assert [len(open_source(f"vtab:{task}@{clevr}", split)) for split in ("train", "val", "test")] == [
            5,
            1,
            2,
        ]


def test_records_that_make_no_label_are_called_damaged(tmp_path):
    odd, empty = [clevr_example(number, [9.0] * number) for number in (2, 11)], [clevr_example(0, [])]
    write(tmp_path, "clevr", {"train": odd, "validation": empty, "test": empty})
    for split, labels in (("trainval", "(-1|8)"), ("test", "-3")):
        source = open_source(f"vtab:clevr_count@{tmp_path}", split)
        for index in range(len(source)):
            with pytest.raises(OSError, match=f"damaged record: its label {labels} is none of the 8 classes"):
                source[index]
    assert [each["label"] for each in examples_of(f"vtab:clevr_distance@{tmp_path}", "trainval")[1]] == [2, 2]
    with pytest.raises(OSError, match="damaged record"):
        open_source(f"vtab:clevr_distance@{tmp_path}", "test")[0]


def test_dsprites(tmp_path):
    ink = np.zeros((64, 64, 1), np.uint8)
    ink[10:20, 30:50] = 1
    row = dict.fromkeys(("label_shape", "label_scale", "label_y_position"), 1)
    row |= dict.fromkeys((f"value_{each}" for each in ("shape", "scale", "orientation", "x_position")), 0.5)
    rows = [
        {
            **row,
            "image": cv2.imencode(".png", ink)[1].tobytes(),
            "label_orientation": number,
            "label_x_position": number % 32,
            "value_y_position": 0,
        }
        for number in range(40)
    ]
    write(tmp_path, "dsprites", {"train": rows})
    source, examples = examples_of(f"vtab:dsprites_orientation@{tmp_path}", "trainval+test")
    # 40 orientations in classes of 2.5: of every five, the first three and the next two go together.
    labels = sorted(int(example["label"]) for example in examples)
    assert labels == [2 * (n // 5) + (n % 5 >= 3) for n in range(40)] and source.num_classes == 16
    for example in examples[:3]:
        np.testing.assert_array_equal(example["image"], ink * 255)
        assert example["image"].dtype == np.uint8
    _, positions = examples_of(f"vtab:dsprites_x_position@{tmp_path}", "trainval+test")
    assert sorted(int(each["label"]) for each in positions) == sorted(n % 32 // 2 for n in range(40))
    sizes = {
        split: len(open_source(f"vtab:dsprites_x_position@{tmp_path}", split)) for split in ("train", "val")
    }
    assert sizes == {"train": 32, "val": 4}


def test_smallnorb(tmp_path):
    def row(number):
        image, image2 = png(number, (96, 96, 1)), png(100 + number, (96, 96, 1))
        return {
            "image": image,
            "image2": image2,
            "label_category": "cars",
            "instance": 3,
            "label_elevation": number % 9,
            "label_azimuth": number,
            "label_lighting": 2,
        }

    write(
        tmp_path, "smallnorb", {"train": [row(n) for n in range(8)], "test": [row(n) for n in range(8, 18)]}
    )
    for task, classes in (("smallnorb_azimuth", 18), ("smallnorb_elevation", 9)):
        source, examples = examples_of(f"vtab:{task}@{tmp_path}", "trainval+test")
        assert source.num_classes == classes
        assert sorted(pixel(example) for example in examples) == list(range(18))
        assert all(example["label"] == pixel(example) % classes for example in examples)
        assert isinstance(examples[0]["image"], bytes)
        _, val = examples_of(f"vtab:{task}@{tmp_path}", "val")
        _, test = examples_of(f"vtab:{task}@{tmp_path}", "test")
        assert len(val) == len(test) == 5
        assert {pixel(each) for each in val + test} == set(range(8, 18))


# Tasks and splits

# From the *_test.py of the reference: train, val, trainval, test, and the number of classes.
REFERENCE = {
    "caltech101": (2754, 306, 3060, 6084, 102),
    "cifar100": (45000, 5000, 50000, 10000, 100),
    "dtd": (1880, 1880, 3760, 1880, 47),
    "oxford_flowers102": (1020, 1020, 2040, 6149, 102),
    "oxford_iiit_pet": (2944, 736, 3680, 3669, 37),
    "sun397": (76128, 10875, 87003, 21750, 397),
    "svhn": (65931, 7326, 73257, 26032, 10),
    "diabetic_retinopathy": (35126, 10906, 46032, 42670, 5),
    "eurosat": (16200, 5400, 21600, 5400, 10),
    "patch_camelyon": (262144, 32768, 294912, 32768, 2),
    "resisc45": (18900, 6300, 25200, 6300, 45),
    "clevr_count": (63000, 7000, 70000, 15000, 8),
    "clevr_distance": (63000, 7000, 70000, 15000, 6),
    "dmlab": (65550, 22628, 88178, 22735, 6),
    "dsprites_orientation": (589824, 73728, 663552, 73728, 16),
    "dsprites_x_position": (589824, 73728, 663552, 73728, 16),
    "kitti": (6347, 423, 6770, 711, 4),
    "smallnorb_azimuth": (24300, 12150, 36450, 12150, 18),
    "smallnorb_elevation": (24300, 12150, 36450, 12150, 9),
}
# The splits that TFDS has, where they are not train, validation and test of the sizes above.
TFDS_SIZES = {
    "caltech101": {"train": 3060, "test": 6084},
    "cifar100": {"train": 50000, "test": 10000},
    "oxford_iiit_pet": {"train": 3680, "test": 3669},
    "svhn": {"train": 73257, "test": 26032, "extra": 531131},
    "eurosat": {"train": 27000},
    "resisc45": {"train": 31500},
    "clevr_count": {"train": 70000, "validation": 15000, "test": 15000},
    "clevr_distance": {"train": 70000, "validation": 15000, "test": 15000},
    "dsprites_orientation": {"train": 737280},
    "dsprites_x_position": {"train": 737280},
    "smallnorb_azimuth": {"train": 24300, "test": 24300},
    "smallnorb_elevation": {"train": 24300, "test": 24300},
}


def spans(task, sizes):
    """For each split of a task, the spans of the data set's splits that it is made of."""
    found = {}
    for name, split in TASKS[task].splits(sizes).items():
        pieces = splits.parse(split, sizes)
        found[name] = [(piece.name, *piece.bounds(sizes[piece.name])) for piece in pieces]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_splits_are_those_of_the_reference(task):
    train, val, trainval, test, _ = REFERENCE[task]
    sizes = TFDS_SIZES.get(task, {"train": train, "validation": val, "test": test})
    found = spans(task, sizes)
    counts = {name: sum(stop - start for _, start, stop in each) for name, each in found.items()}
    assert counts == {
        **{"train": train, "val": val, "trainval": trainval, "test": test},
        **{"train800": 800, "val200": 200, "train800val200": 1000},
    }

    def members(*names):
        """How often the splits `names` have each example of the data set."""
        counts = {split: np.zeros(size, int) for split, size in sizes.items()}
        for split, start, stop in (span for name in names for span in found[name]):
            counts[split][start:stop] += 1
        return np.concatenate(list(counts.values()))

    np.testing.assert_array_equal(members("train", "val"), members("trainval"))
    np.testing.assert_array_equal(members("train800", "val200"), members("train800val200"))
    assert members("trainval", "test").max() == 1
    assert (members("train800") <= members("train")).all() and (members("val200") <= members("val")).all()
    for small, large in (("train800", "train"), ("val200", "val")):
        assert found[small][0][:2] == found[large][0][:2]  # the first ones, in order


def test_the_list_of_tasks_is_whole():
    assert set(TASKS) == set(REFERENCE) and len(TASKS) == 19


@pytest.mark.parametrize("task", TASKS)
def test_tasks_fit_the_data_sets_of_tfds(task, tmp_path):
    """Features, classes and versions of the installed TFDS, which has only a newer version of the pets."""
    import tensorflow_datasets as tfds

    dataset = TASKS[task].dataset
    builder = builder_class(dataset)(data_dir=tmp_path, **config_of(dataset))
    features = builder.info.features
    there = tfds.core.utils.flatten_nest_dict(features.get_serialized_info())
    assert {"image", *TASKS[task].reads} <= set(there)
    assert TASKS[task].num_classes == REFERENCE[task][4]
    names = TASKS[task].class_names or features[TASKS[task].reads[0]].names
    assert len(names) == TASKS[task].num_classes
    assert isinstance(features["image"], tfds.features.Image)
    assert builder.version.major == (4 if task == "oxford_iiit_pet" else TASKS[task].major)


def test_plain_labels_and_cut_splits(tmp_path):
    rows = [
        {"id": str(n), "image": png(n, (32, 32, 3)), "label": n, "coarse_label": n % 20} for n in range(50)
    ]
    write(tmp_path, "cifar100", {"train": rows[:40], "test": rows[40:]})
    data = f"vtab:cifar100@{tmp_path}"
    _, plain = examples_of(f"tfds:cifar100@{tmp_path}", "train")
    for split, expected in (("train", plain[:36]), ("val", plain[36:]), ("trainval", plain)):
        source, examples = examples_of(data, split)
        assert examples == expected and source.num_classes == 100
    _, part = examples_of(data, "trainval[:50%]+val")
    assert part == plain[:20] + plain[36:]
    assert {int(each["label"]) for each in examples_of(data, "test")[1]} == set(range(40, 50))
    with pytest.raises(UserError, match=r"'train\[:800\]' asks for example 800 of a split that has 40"):
        open_source(data, "train800val200")


# Versions and bad input


def test_the_version_of_the_reference_is_taken_first(kitti, tmp_path, caplog):
    def add(version):
        """The same data set under another version."""
        shutil.copytree(kitti / "kitti/3.3.0", tmp_path / "kitti" / version)
        info = tmp_path / "kitti" / version / "dataset_info.json"
        info.write_text(info.read_text().replace('"3.3.0"', f'"{version}"'))

    def version_read(where=""):
        caplog.clear()
        source = open_source(f"vtab:kitti{where}@{tmp_path}", "train")
        return source._rows._files[0].rsplit("/", 2)[1], "VTAB" in caplog.text

    add("4.0.0")
    assert version_read() == ("4.0.0", True)
    assert "4.0.0 is read. The splits of VTAB are those of version 3.*" in caplog.text
    add("3.1.0")
    assert version_read() == ("3.1.0", False)
    add("3.10.0")
    assert version_read() == ("3.10.0", False)
    assert version_read(":3.1.0") == ("3.1.0", False)
    assert version_read(":4.0.0") == ("4.0.0", True)
    with pytest.raises(UserError, match=r"kitti:3\.2\.0.*only the versions 3\.1\.0, 3\.10\.0, 4\.0\.0"):
        open_source(f"vtab:kitti:3.2.0@{tmp_path}")


def test_tfds_names_the_tasks_of_a_data_set_without_a_plain_label(kitti, clevr):
    with pytest.raises(UserError, match=r"nothing of the kind ClassLabel.*it is data='vtab:kitti'"):
        open_source(f"tfds:kitti@{kitti}")
    with pytest.raises(UserError, match="data='vtab:clevr_count' or data='vtab:clevr_distance'"):
        open_source(f"tfds:clevr@{clevr}")


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("kiti", "no task 'kiti'. Did you mean 'kitti'. Its tasks: caltech101, cifar100"),
        ("clevr_count_all", "Did you mean 'clevr_count'"),
        ("kitti:three", r"should have the form 'vtab:NAME\[:VERSION\]\[@DIR\]'"),
        (
            "kitti@/nowhere",
            r"/nowhere has no prepared data set kitti.\n.*`tfds build kitti --data_dir /now",
        ),
        ("svhn@/nowhere", r"tfds build svhn_cropped --data_dir /nowhere --file_format array_record`"),
        ("eurosat@/nowhere", r"tfds build eurosat/rgb [\s\S]*pip install tensorflow[\s\S]*catalog/eurosat\."),
        ("resisc45@/nowhere", r"by hand: see https://www.tensorflow.org/datasets/catalog/resisc45"),
    ],
)
def test_bad_names_are_explained(argument, says):
    with pytest.raises(UserError, match=says) as caught:
        open_source(f"vtab:{argument}")
    assert f"vtab:{argument}" in str(caught.value)


def test_vtab_has_its_own_split_names(kitti):
    with pytest.raises(
        UserError, match="Splits here: train, val, trainval, test, train800, val200, train800val200"
    ):
        open_source(f"vtab:kitti@{kitti}", "validation")


def test_another_data_set_of_the_same_name_is_refused(tmp_path, kitti):
    from vitjax.data import prepare

    for split in ("train", "validation"):
        for label in ("cat", "dog"):
            (tmp_path / "src" / split / label).mkdir(parents=True)
            (tmp_path / "src" / split / label / "1.png").write_bytes(png(7))
    for name in ("kitti", "cifar100", "patch_camelyon"):
        prepare.main(["folder", str(tmp_path / "src"), "--out", str(tmp_path), "--name", name])
    with pytest.raises(
        UserError, match=r"no feature objects/type, objects/location, so it is not kitti of TFDS"
    ):
        open_source(f"vtab:kitti@{tmp_path}")
    with pytest.raises(UserError, match="has 2 classes, so it is not cifar100 of TFDS, which has 100"):
        open_source(f"vtab:cifar100@{tmp_path}")
    with pytest.raises(UserError, match=r"patch_camelyon/1\.0\.0 is not whole: split 'test' names 'test'"):
        open_source(f"vtab:patch_camelyon@{tmp_path}")
