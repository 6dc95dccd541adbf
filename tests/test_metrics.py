"""metrics.jsonl, TensorBoard and the split of wall time."""

import json
import math
import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitjax import metrics
from vitjax.errors import UserError


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def scalars(workdir, tag):
    events = EventAccumulator(str(workdir / "tensorboard")).Reload()
    return [(e.step, round(e.value, 5)) for e in events.Scalars(tag)]


def test_one_object_a_step(tmp_path):
    with metrics.MetricWriter(tmp_path / "new", tensorboard=False) as writer:
        writer.write(0, {"num_params": np.int64(7)})
        writer.write(10, {"training_loss": np.float32(0.5)})
        writer.write(10, {"val/prec@1": 0.25})
        assert len(rows(tmp_path / "new")) == 1  # step 10 is still open
        writer.write(20, {"training_loss": 0.25})
    assert rows(tmp_path / "new") == [
        {"step": 0, "num_params": 7},
        {"step": 10, "training_loss": 0.5, "val/prec@1": 0.25},
        {"step": 20, "training_loss": 0.25},
    ]


def test_steps_ascend_and_values_are_scalars(tmp_path):
    with metrics.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(10, {"a": 1.0})
        with pytest.raises(ValueError, match="step 9 come after those of step 10"):
            writer.write(9, {"a": 1.0})
        with pytest.raises(TypeError, match="'b' is str"):
            writer.write(10, {"b": "x"})


def test_non_finite_is_valid_json(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan"), "norm": float("inf"), "ok": 1.0})
    assert rows(tmp_path) == [{"step": 1, "loss": None, "norm": None, "ok": 1.0}]
    (row,) = metrics.read_metrics(tmp_path)
    assert math.isnan(row["loss"]) and row["ok"] == 1.0


def test_resume_cuts_both_records(tmp_path):
    with metrics.MetricWriter(tmp_path) as writer:
        for step in range(0, 60, 10):
            writer.write(step, {"val/prec@1": step / 100})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 60, "val/pr')  # killed while writing
    with metrics.MetricWriter(tmp_path, start_step=30) as writer:
        assert [row["step"] for row in rows(tmp_path)] == [0, 10, 20, 30]
        for step in (40, 50):
            writer.write(step, {"val/prec@1": 1 + step / 100})
    expected = [(0, 0.0), (10, 0.1), (20, 0.2), (30, 0.3), (40, 1.4), (50, 1.5)]
    assert [(row["step"], row["val/prec@1"]) for row in rows(tmp_path)] == expected
    assert scalars(tmp_path, "val/prec@1") == expected
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_a_run_from_scratch_starts_the_records_anew(tmp_path):
    for value in (1.0, 2.0):  # the first was killed before its first checkpoint
        with metrics.MetricWriter(tmp_path) as writer:
            writer.write(0, {"a": value})
            writer.write(5, {"a": value})
    assert [(row["step"], row["a"]) for row in rows(tmp_path)] == [(0, 2.0), (5, 2.0)]
    assert scalars(tmp_path, "a") == [(0, 2.0), (5, 2.0)]


def test_reading_passes_over_torn_lines_and_merges_steps(tmp_path):
    assert metrics.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "a": 1}\nnot json\n{"step": 1}\n{"step": 2, "b": 3}\n{"st'
    )
    assert metrics.read_metrics(tmp_path) == [{"step": 1}, {"step": 2, "a": 1, "b": 3}]


def test_write_errors_name_the_path(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"Cannot write '.*/file': File exists"):
        metrics.MetricWriter(tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_in_one_paragraph(tmp_path):
    writer = metrics.MetricWriter(tmp_path, tensorboard=False)
    writer.write(1, {"a": 1.0})
    writer._lines = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match="No space left on device"):
        writer.flush()


def test_no_workdir_writes_nothing():
    with metrics.MetricWriter(None) as writer:
        writer.write(1, {"a": 1.0})


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_wall_time_charges_the_innermost_phase():
    clock = Clock()
    wall = metrics.WallTime(clock=clock)
    with wall.phase("start-up"):
        clock.now += 5
        with wall.phase("compile"):
            clock.now += 3
    clock.now += 1
    with pytest.raises(RuntimeError), wall.phase("step"):
        clock.now += 10
        raise RuntimeError
    with wall.phase("data wait"):
        clock.now += 1
        assert wall.split()["data wait"] == 1  # the open phase counts
    split = wall.split()
    assert {name: s for name, s in split.items() if s} == {
        "start-up": 5,
        "compile": 3,
        "data wait": 1,
        "step": 10,
        "other": 1,
    }
    assert tuple(split) == metrics.PHASES
    assert wall.total == sum(split.values()) == 20
    assert wall.goodput == 0.5
    assert wall.summary().startswith("wall 0:00:20, goodput 50.0% (step 50.0%, start-up 25.0%, compile 15.0%")
    with pytest.raises(ValueError, match="unknown phase 'lunch'"), wall.phase("lunch"):
        pass


def test_a_phase_may_find_out_what_it_was():
    clock = Clock()
    wall = metrics.WallTime(clock=clock)
    with wall.phase("data wait"):
        clock.now += 2
        wall.charge_to("step")
    with wall.phase("data wait"):
        clock.now += 1
    assert wall.split()["step"] == 2 and wall.split()["data wait"] == 1


def test_wall_time_continues_over_a_resume():
    clock = Clock()
    wall = metrics.WallTime({"step": 7.0, "of another version": 2.0}, clock=clock)
    with wall.phase("step"):
        clock.now += 3
    assert wall.split()["step"] == 10 and wall.split()["other"] == 2
