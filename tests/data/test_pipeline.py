"""The pipeline: batches are a pure function of (seed, step), and bad examples are named."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from vitjax.data.pipeline import eval_batches, examples_per_epoch, train_batches
from vitjax.data.sources import Source, open_source
from vitjax.errors import UserError


def augment(example, rng):
    """A stand-in for a preprocessing string: depends on the example and on how the numbers are drawn."""
    image = np.roll(np.repeat(example["image"], 3, axis=2), rng.integers(8), axis=1)
    return {"image": image, "label": example["label"], "noise": rng.normal(size=2).astype(np.float32)}


def decode(example, rng):
    image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("this is no image")
    return {**example, "image": image, "noise": rng.random()}


class Tiny(Source):
    """Examples whose image is their index; those in `broken` cannot be read."""

    def __init__(self, size, broken=(), labels=None):
        self.name, self.class_names = "tiny", ("a", "b")
        self._size, self._broken, self._labels = size, frozenset(broken), labels

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        if index in self._broken:
            raise OSError("the disk says no")
        label = np.int32(self._labels[index] if self._labels else index % 2)
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": label}


def keep(example, rng):
    return {**example, "draw": rng.random()}


def take(batches, count):
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def joined(parts):
    """The global batches that the processes' rows make up."""
    return [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


@pytest.fixture(scope="module")
def reference():
    """Ten batches of 300: the stream crosses two epochs of 1,437."""
    return take(train_batches(open_source("digits"), augment, batch_size=300, seed=3), 10)


# The stream is a function of (seed, step)


def test_batches_have_the_promised_types(reference):
    batch = reference[0]
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (300, 8, 8, 3)),
        "label": (np.int32, (300,)),
        "noise": (np.float32, (300, 2)),
        "_id": (np.int64, (300,)),
    }
    source = open_source("digits")
    assert all(
        source[index]["label"] == label for index, label in zip(batch["_id"], batch["label"], strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(reference, workers):
    batches = train_batches(open_source("digits"), augment, batch_size=300, seed=3, workers=workers)
    assert_same(take(batches, 10), reference)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_do_not_change_the_stream(reference, hosts):
    parts = [
        take(
            train_batches(
                open_source("digits"),
                augment,
                batch_size=300,
                seed=3,
                process_index=host,
                process_count=hosts,
            ),
            10,
        )
        for host in range(hosts)
    ]
    assert_same(joined(parts), reference)


def test_hosts_workers_and_restart_together(reference):
    parts = [
        take(
            train_batches(
                open_source("digits"),
                augment,
                batch_size=300,
                seed=3,
                start_step=4,
                workers=host,
                process_index=host,
                process_count=2,
            ),
            6,
        )
        for host in range(2)
    ]
    assert_same(joined(parts), reference[4:])


@pytest.mark.parametrize("step", range(1, 10))
def test_restart_at_any_step(reference, step):
    batches = train_batches(open_source("digits"), augment, batch_size=300, seed=3, start_step=step)
    assert_same(take(batches, 10 - step), reference[step:])


def test_every_epoch_holds_each_example_once_in_a_new_order(reference):
    ids = np.concatenate([batch["_id"] for batch in reference])
    first, second = ids[:1437], ids[1437:2874]
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(1437))
    assert (first == second).mean() < 0.02
    assert (first == np.arange(1437)).mean() < 0.02


def test_seeds_and_epochs_differ(reference):
    (other,) = take(train_batches(open_source("digits"), augment, batch_size=300, seed=4), 1)
    assert (other["_id"] == reference[0]["_id"]).mean() < 0.05
    noise = np.concatenate([batch["noise"] for batch in reference])
    assert len(np.unique(noise)) > 0.999 * noise.size


def test_source_smaller_than_a_batch():
    (batch,) = take(train_batches(Tiny(3), keep, batch_size=8, seed=0), 1)
    assert np.bincount(batch["_id"]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert len(np.unique(batch["draw"])) == 8


def test_distant_steps_cost_nothing():
    start = time.monotonic()
    take(train_batches(Tiny(5), keep, batch_size=4, seed=0, start_step=10**9), 2)
    assert time.monotonic() - start < 2


# Repeated augmentation


def repeated(batch_size, **options):
    return train_batches(open_source("digits"), augment, batch_size=batch_size, seed=3, repeats=3, **options)


@pytest.fixture(scope="module")
def views():
    """Nine batches of 300 of three views each; an epoch of 1,437 digits is four such batches."""
    return take(repeated(300), 9)


def test_repeated_views_are_neighbours_and_differ(views):
    for batch in views:
        images = batch["_id"].reshape(100, 3)
        assert (images == images[:, :1]).all()
        assert len(np.unique(images[:, 0])) == 100
        assert len(np.unique(batch["noise"][:, 0])) == 300


def test_an_epoch_of_repeated_views_is_as_long_as_one_without_and_drops_what_fills_no_batch(views):
    assert examples_per_epoch(1437, batch_size=300, repeats=3) == 1200  # 1280 = 5 * 256, less 80
    ids = np.concatenate([batch["_id"] for batch in views])
    first, second = ids[:1200], ids[1200:2400]
    assert len(np.unique(first)) == len(np.unique(second)) == 400
    assert len(np.intersect1d(first, second)) < 200  # another third: 400 * 400 / 1437 = 111 are expected


def test_repeats_take_the_order_of_the_epoch(views, reference):
    np.testing.assert_array_equal(views[0]["_id"][::3], reference[0]["_id"][:100])


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "repeats", "rows"),
    [
        (1_281_167, 1024, 3, 1251 * 1024),
        (1_281_167, 1024, 1, 1_281_167),
        (50_000, 768, 3, 65 * 768),  # 49,920 of 50,000
        (255, 60, 3, 240),
        (100, 120, 3, 100),  # no batch is full: nothing is dropped
    ],
)
def test_rows_of_an_epoch(num_examples, batch_size, repeats, rows):
    assert examples_per_epoch(num_examples, batch_size=batch_size, repeats=repeats) == rows


@pytest.mark.parametrize(("repeats", "passes"), [(1, 3), (3, 3), (3, 1)])
def test_an_epoch_of_passes_is_fresh_permutations_in_whole_batches(repeats, passes):
    size, batch = 20, 7
    rows = size * passes // batch * batch
    assert examples_per_epoch(size, batch_size=batch, repeats=repeats, passes=passes) == rows
    options = dict(batch_size=batch, seed=1, repeats=repeats, passes=passes)
    batches = take(train_batches(Tiny(size), keep, **options), 2 * rows // batch)
    ids = np.concatenate([batch["_id"] for batch in batches])
    epochs = ids.reshape(2, rows)
    for epoch in epochs:
        drawn = epoch[::repeats]  # one of each group of views
        np.testing.assert_array_equal(epoch, np.repeat(drawn, repeats)[:rows])
        orders = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        assert all(len(set(order.tolist())) == len(order) for order in orders)
        assert all((a[: len(b)] != b).any() for a, b in itertools.pairwise(orders))
    assert (epochs[0] != epochs[1]).any()  # what fills no batch is dropped: the second begins afresh
    again = take(train_batches(Tiny(size), keep, start_step=1, **options), 2)
    assert_same(again, batches[1:3])


def test_the_epochs_of_the_small_data_recipe():
    assert examples_per_epoch(50_000, batch_size=128, passes=3) == 1171 * 128
    assert examples_per_epoch(50_000, batch_size=128, passes=3, repeats=3) == 1171 * 128
    assert examples_per_epoch(73_257, batch_size=128, passes=3) == 1716 * 128
    assert examples_per_epoch(100_000, batch_size=128, passes=3) == 2343 * 128
    assert examples_per_epoch(3, batch_size=128, passes=3) == 9


def test_hosts_and_restarts_do_not_change_repeated_views(views):
    parts = [take(repeated(300, start_step=3, process_index=host, process_count=4), 6) for host in range(4)]
    assert_same(joined(parts), views[3:])


def test_a_source_smaller_than_a_batch_is_repeated_for_ever():
    batches = take(train_batches(Tiny(4), keep, batch_size=6, seed=0, repeats=3), 4)
    ids = np.concatenate([batch["_id"] for batch in batches])
    epochs = ids.reshape(6, 4)  # of four rows: an image three times and another once
    assert all(sorted(np.bincount(epoch, minlength=4)) == [0, 0, 1, 3] for epoch in epochs)


# Evaluation


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 12, 36, 40, 100])
def test_evaluation_covers_each_example_once(batch_size, hosts):
    source, parts = Tiny(37), []
    for host in range(hosts):
        batches = eval_batches(source, keep, batch_size=batch_size, process_index=host, process_count=hosts)
        count = len(batches)
        parts.append(list(batches))
        assert len(parts[-1]) == count == -(-37 // batch_size)
        batches.close()
    for batch in joined(parts):
        assert batch["_mask"].shape == batch["label"].shape == (batch_size,)
        np.testing.assert_array_equal(batch["_id"] == -1, ~batch["_mask"])
        np.testing.assert_array_equal(batch["image"][batch["_mask"], 0, 0, 0], batch["_id"][batch["_mask"]])
    ids = np.concatenate([batch["_id"][batch["_mask"]] for batch in joined(parts)])
    np.testing.assert_array_equal(ids, np.arange(37))


def test_evaluation_with_workers():
    source = open_source("digits", "test")
    plain = eval_batches(source, augment, batch_size=100)
    workers = eval_batches(source, augment, batch_size=100, workers=1)
    assert_same(list(workers), list(plain))
    plain.close(), workers.close()


# Broken examples


@pytest.fixture
def photos(tmp_path):
    for number in range(12):
        path = tmp_path / f"{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((4, 4, 3), number, np.uint8))
    (tmp_path / "a/4.png").write_text("this is no image")
    (tmp_path / "b/5.png").write_bytes((tmp_path / "b/7.png").read_bytes()[:20])
    return open_source(f"folder:{tmp_path}")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_file_is_named(photos, workers):
    batches = train_batches(photos, decode, batch_size=12, seed=0, workers=workers)
    try:
        with pytest.raises(UserError, match=r"(a/4|b/5)\.png cannot be read: .*no image.*on_error='skip'"):
            next(batches)
    finally:
        batches.close()


def test_skipping_is_deterministic_and_counted(photos):
    runs = []
    for workers, start in ((0, 0), (1, 0), (0, 1)):
        batches = train_batches(
            photos, decode, batch_size=12, seed=0, workers=workers, start_step=start, on_error="skip"
        )
        runs.append(take(batches, 3 - start))
        assert batches.skipped == 2 * (3 - start)  # a batch is an epoch of twelve, with two broken files
    assert_same(runs[0], runs[1])
    assert_same(runs[0][1:], runs[2])
    for batch in runs[0]:
        numbers = [int(pathlib.Path(photos.describe(index)).stem) for index in batch["_id"]]
        assert not {4, 5} & set(numbers)
        np.testing.assert_array_equal(numbers, batch["image"][:, 0, 0, 0])


def test_evaluation_masks_broken_examples():
    batches = eval_batches(Tiny(10, broken=(0, 7, 9)), keep, batch_size=4, on_error="skip")
    rows = list(batches)
    batches.close()
    counted = np.concatenate([batch["_id"][batch["_mask"]] for batch in rows])
    np.testing.assert_array_equal(counted, [1, 2, 3, 4, 5, 6, 8])
    assert batches.skipped == 3


def test_all_broken_is_an_error_even_when_skipping():
    with pytest.raises(UserError, match=r"50 examples in a row.*example \d of tiny cannot be read: the disk"):
        take(train_batches(Tiny(4, broken=range(4)), keep, batch_size=2, seed=0, on_error="skip"), 1)


def test_faults_of_the_code_are_not_taken_for_broken_examples():
    def faulty(example, rng):
        return example["imagee"]

    for on_error in ("raise", "skip"):
        with pytest.raises(KeyError, match="imagee"):
            take(train_batches(Tiny(4), faulty, batch_size=2, seed=0, on_error=on_error), 1)


# Other bad input


def test_label_out_of_range_is_named():
    labels = [0, 1, 0, 2, 1]
    with pytest.raises(UserError, match="label of example 3 of tiny is 2, but there are 2 classes"):
        take(eval_batches(Tiny(5, labels=labels), keep, batch_size=5), 1)
    with pytest.raises(UserError, match="label of example 1 of tiny is 1, but there are 1 classes"):
        take(eval_batches(Tiny(5), keep, batch_size=5, num_classes=1), 1)
    take(eval_batches(Tiny(5, labels=labels), keep, batch_size=5, num_classes=3), 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size=6 .* multiple of 4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2, "on_error": "ignore"}, "on_error='ignore'"),
        ({"batch_size": 2, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(UserError, match=says):
        train_batches(Tiny(4), keep, **{"seed": 0, **options})


def test_images_without_a_common_shape(tmp_path):
    for number in (1, 2):
        (tmp_path / "a").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"a/{number}.png"), np.zeros((number, 4, 3), np.uint8))
    source = open_source(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"'image' has different shapes.*\(1, 4, 3\), \(2, 4, 3\).*resize"):
        take(train_batches(source, decode, batch_size=4, seed=0), 1)
    with pytest.raises(UserError, match=r"still encoded.*decode"):
        take(train_batches(source, keep, batch_size=4, seed=0), 1)


# Worker processes end


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def living():
    """The parent of each living process: `{pid: parent's pid}`."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state not in "ZX":
            found[int(folder.name)] = int(parent)
    return found


def children_of(pid):
    return {child for child, parent in living().items() if parent == pid}


PARENT = """
import sys, time
from vitjax.data.pipeline import train_batches
from vitjax.data.sources import open_source
if __name__ == "__main__":
    same = lambda example, rng: example
    batches = train_batches(open_source("digits"), same, batch_size=8, seed=0, workers=2)
    next(batches)
    print("ready", flush=True)
    time.sleep(60)
"""


@linux
def test_workers_die_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, env=environment
    )
    try:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        workers = children_of(parent.pid)
        assert len(workers) >= 2
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while workers & living().keys() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not workers & living().keys()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


@linux
def test_close_ends_the_workers():
    before = children_of(os.getpid())
    batches = train_batches(open_source("digits"), augment, batch_size=8, seed=0, workers=2)
    next(batches)
    assert len(children_of(os.getpid()) - before) >= 2
    start = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - start < 10
    left = children_of(os.getpid()) - before
    assert len(left) <= 1  # multiprocessing's resource tracker stays


def test_worker_processes_leave_no_warning_at_exit(tmp_path):
    """jax, reading batches where they lie, frees the last ones so late that Python would call them leaked."""
    script = tmp_path / "script.py"
    script.write_text(
        "import jax\n"
        "from vitjax.data import pipeline, pp\n"
        "from vitjax.data.sources import open_source\n"
        "def main():\n"
        "    source, host = open_source('digits'), pp.parse('decode|resize(64)').host\n"
        "    batches = pipeline.train_batches(source, host, batch_size=64, seed=0, workers=1)\n"
        "    for _, batch in zip(range(3), batches):\n"
        "        jax.device_put(batch['image']).sum().block_until_ready()\n"
        "    batches.close()\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
