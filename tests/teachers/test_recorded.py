"""Recorded logits: the loss of the teacher in the step, for every step and process; bad files by name."""

import json
import re

import numpy as np
import pytest

from vitjax import config as config_lib
from vitjax import experiment, sharding, teacher_logits
from vitjax.data import pipeline
from vitjax.errors import UserError
from vitjax.teachers.recorded import KEY, Rows, Writer

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict(dict(seed=3, total_steps=5, num_classes=10, lr=0.1, log_training_steps=1))
    to_model = "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
    pp = "decode|resize(16)|random_crop(8)|value_range(-1, 1)|" + to_model + "|mixup(0.5)"
    config.input = dict(data="digits", batch_size=16, pp=pp)
    config.model = dict(name="linear_models.Linear")
    model = dict(name="linear_models.Linear", hidden=4)
    teacher = dict(weights="random", model=model, input="value_range(0, 1)", convert=True)
    config.task = dict(name="distill", kind="soft", teacher=teacher)
    return config
"""


RESIZED = "decode|resize(8)|value_range(-1, 1)|onehot({num_classes}, key='label', key_result='labels')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the config of a run, and the logits of its teacher."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "c.py").write_text(CONFIG)
    assert record(folder, "logits") == 0
    return folder


def record(folder, name, *more):
    return teacher_logits.main(["--config", str(folder / "c.py"), "--out", str(folder / name), *more])


def build(folder, **overrides):
    overrides = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return experiment.build(config_lib.load(str(folder / "c.py"), overrides))


def training(run, start=0):
    """The metrics of all steps from `start` on; the state is that of step 0, moved on to `start`."""
    state = run.init_state()
    state = state.replace(step=state.step + start)
    step, loader = run.train_step(), run.batches(start)
    found = []
    for _ in range(start, run.total_steps):
        state, metrics = step(state, sharding.put_batch(next(loader), run.mesh))
        found.append({name: float(value) for name, value in metrics.items()})
    loader.close()
    return found


def test_the_loss_is_that_of_the_teacher_in_the_step(folder):
    in_step = training(build(folder))
    read = training(build(folder, task__teacher__logits=folder / "logits"))
    assert len(read) == 5 and len({row["distillation_loss"] for row in read}) == 5
    for ours, theirs in zip(read, in_step, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # One program computes other roundings than two; seen: 1e-7.
            assert ours[name] == pytest.approx(value, rel=1e-6), name


def test_a_run_that_goes_on_reads_on(folder):
    run = build(folder, task__teacher__logits=folder / "logits")
    rows = Rows(folder / "logits")
    loader = run.batches(3)
    np.testing.assert_array_equal(next(loader)[KEY], rows(np.arange(48, 64)))
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_each_process_reads_its_own_rows(folder, workers):
    run = build(folder, task__teacher__logits=folder / "logits")
    rows = Rows(folder / "logits")
    for process in range(2):
        loader = pipeline.train_batches(
            run.source,
            run.preprocess.host,
            batch_size=16,
            seed=3,
            start_step=1,
            workers=workers,
            process_index=process,
            process_count=2,
            by_position=run.task.by_position,
        )
        np.testing.assert_array_equal(next(loader)[KEY], rows(np.arange(16, 24) + 8 * process))
        loader.close()


def test_half_precision_halves_the_file(folder):
    assert record(folder, "half", "--dtype", "float16") == 0
    half, whole = Rows(folder / "half"), Rows(folder / "logits")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half(np.arange(80)), whole(np.arange(80)).astype(np.float16))
    run = build(folder, task__teacher__logits=folder / "half")
    assert run.batch_spec[KEY].dtype == np.float16


def test_the_file_is_one_that_others_read(folder):
    from safetensors import safe_open

    with safe_open(str(folder / "logits"), "np") as file:
        logits = file.get_tensor("logits")
        about = json.loads(file.metadata()["about"])
    np.testing.assert_array_equal(logits, Rows(folder / "logits")(np.arange(80)))
    assert about["stream"]["seed"] == 3 and about["teacher"]["weights"] == "random"


def test_a_killed_recording_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    write, written = Writer.write, []

    def dies(self, step, logits):
        if step == 3:
            raise KeyboardInterrupt
        write(self, step, logits)

    monkeypatch.setattr(Writer, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        record(folder, "killed")
    assert not (folder / "killed").exists()
    # The machine died, too: the last step that was written is not whole.
    with open(folder / "killed.partial", "r+b") as file:
        start = Rows(folder / "killed.partial")._start
        file.seek(start + 2 * 16 * 40 + 7)
        file.write(b"\0\xff\0")

    def notes(self, step, logits):
        written.append(step)
        write(self, step, logits)

    monkeypatch.setattr(Writer, "write", notes)
    assert record(folder, "killed") == 0
    assert written == [2, 3, 4] and "2 steps are there: going on" in capsys.readouterr().out
    assert (folder / "killed").read_bytes() == (folder / "logits").read_bytes()


def test_the_config_may_name_the_file_already(folder):
    assert record(folder, "named", f"--config.task.teacher.logits={folder / 'named'}") == 0
    assert (folder / "named").read_bytes() == (folder / "logits").read_bytes()


def test_what_is_there_already_is_not_recorded_again(folder, capsys):
    before = (folder / "logits").stat().st_mtime_ns
    assert record(folder, "logits") == 0
    assert (folder / "logits").stat().st_mtime_ns == before and "there already" in capsys.readouterr().out
    assert record(folder, "logits", "--config.seed=4") == 2
    assert re.search(r"seed is 4 now, 3 there", capsys.readouterr().err)
    assert (folder / "logits").stat().st_mtime_ns == before


def test_an_unfinished_file_of_another_run_is_not_written_to(folder, monkeypatch, capsys):
    def dies(self, step, logits):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            record(folder, "begun")
    before = (folder / "begun.partial").read_bytes()
    assert record(folder, "begun", "--config.seed=4") == 2
    assert re.search(r"begun for another run .*: seed is 4 now, 3 there\. Remove it", capsys.readouterr().err)
    assert (folder / "begun.partial").read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (dict(seed=4), r"recorded for another run: seed is 4 now, 3 there\. Set these back, or record"),
        (dict(input__batch_size=8), r"batch_size is 8 now, 16 there"),
        (
            dict(input__split="train[:50%]"),
            r"examples is \d+ now, \d+ there; input\.split is 'train\[:50%\]' now",
        ),
        (dict(input__pp=RESIZED), r"input\.pp is .decode\|resize\(8\)"),
        (dict(total_steps=6), r"the run takes 6 steps, there are 5"),
        (dict(num_classes=12), r"the run has 12 labels, the logits 10"),
        (dict(task__teacher__model__hidden=5), r"task\.teacher\.model is .*'hidden': 5.* now"),
        (dict(task__teacher__convert=False), r"task\.teacher\.convert is False now, True there"),
    ],
)
def test_logits_of_another_run_are_refused_by_name(folder, overrides, says):
    with pytest.raises(UserError) as refused:
        build(folder, task__teacher__logits=folder / "logits", **overrides)
    assert re.search(says, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_a_longer_recording_serves_a_shorter_run_and_more_workers(folder):
    build(folder, task__teacher__logits=folder / "logits", total_steps=4, input__workers=1, lr=0.5)


def test_a_damaged_row_is_named_when_it_is_read(folder):
    damaged = folder / "damaged"
    data = bytearray((folder / "logits").read_bytes())
    start = Rows(folder / "logits")._start
    data[start + 40 * 17 + 3] ^= 1
    damaged.write_bytes(data)
    rows = Rows(damaged)
    rows(np.arange(17))
    with pytest.raises(UserError, match=r"damaged'.*: row 17 of the logits, of step 1, is damaged"):
        rows(np.arange(16, 32))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-1], "is truncated"),
        (lambda data: data[:5], "is no file of teacher logits"),
        (lambda data: b"", "is no file of teacher logits"),
        (lambda data: b"\xff" * 100, "is no file of teacher logits"),
        (lambda data: data.replace(b"teacher logits 1", b"teacher logits 9"), "is no file of teacher logits"),
        (lambda data: data.replace(b'"F32"', b'"I64"'), "is no file of teacher logits"),
    ],
)
def test_what_is_no_whole_file_is_refused(folder, change, says):
    (folder / "bad").write_bytes(change((folder / "logits").read_bytes()))
    with pytest.raises(UserError, match=rf"task\.teacher\.logits: '.*bad' {says}"):
        Rows(folder / "bad")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config.task={'name': 'classify'}"], "names no teacher whose logits could be recorded"),
        (["--config.task.kind=none"], "names no teacher whose logits could be recorded"),
        (["--config.task.teacher.weight=x"], "Did you mean 'weights'"),
        (["--wrong"], "--wrong.*See python -m vitjax.teacher_logits --help"),
        (["--dtype=int8"], "float16"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_message(folder, capsys, arguments, says):
    assert record(folder, "none", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(says, error)
    assert not list(folder.glob("none*"))
