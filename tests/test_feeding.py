"""Training on a set on the devices: the same run however its steps are handed over or interrupted."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitjax import check, experiment, feeding, metrics, train
from vitjax.config import fingerprint
from vitjax.data.sources import open_source
from vitjax.errors import TrainingFailed, UserError
from vitjax.evaluators import inputs

ROOT = pathlib.Path(__file__).resolve().parent.parent
CIRCUMSTANCES = ("img/sec", "img/sec/core", "data_wait", "uptime", "core_hours")
PP = "value_range(-1, 1)|onehot(10, key='label', key_result='labels')|keep('image', 'labels')|mixup(0.2)"
# Every kind of randomness: order, crop, flip, mixup, dropout. The set's second epoch begins within a batch.
CONFIG = dict(
    input=dict(
        data="digits",
        split="train[:100]",
        pp=f"decode|resize(10)|random_crop(8)|flip_lr|{PP}",
        batch_size=16,
        on_device=True,
        steps_per_dispatch=13,
    ),
    model=dict(name="vit_mu4", width=16, depth=1, num_heads=2, mlp_dim=16, dropout=0.1, pool="gap"),
    evals=dict(
        val=dict(
            type="accuracy",
            data="digits",
            split="test[:100]",
            pp="decode|onehot(10, key='label', key_result='labels')|value_range(-1, 1)",
            batch_size=64,
            log_steps=16,
        )
    ),
    ema=dict(decay=0.9),
    num_classes=10,
    total_steps=40,
    ckpt_steps=12,
    log_training_steps=3,
    report=False,
)
PROGRAMS: dict = {}  # traced and compiled once for all runs in this process
never = lambda step: False


def config_of(**changes):
    """CONFIG with `section__key=value` changed."""
    config = ConfigDict(json.loads(json.dumps(CONFIG)))
    for key, value in changes.items():
        *path, last = key.split("__")
        section = config
        for name in path:
            section = section[name]
        section[last] = value
    return config


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CIRCUMSTANCES} for line in lines]


def final(workdir):
    """Checksums of every leaf of the newest checkpoint."""
    from etils import epath

    from vitjax.checkpoint_files import read_record

    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    return newest, read_record(epath.Path(workdir / "checkpoints" / str(newest)))["leaves"]


@pytest.fixture
def counts(monkeypatch):
    """The number of steps of every dispatch that is made."""
    made = []
    run = feeding.OnDevice.run

    def noted(self, state, dispatch):
        made.append(dispatch.count)
        return run(self, state, dispatch)

    monkeypatch.setattr(feeding.OnDevice, "run", noted)
    return made


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one_by_one")
    assert train.train(config_of(input__steps_per_dispatch=1), workdir, never) == 0
    return workdir


def test_steps_handed_over_together_give_the_same_run(tmp_path, one_by_one, counts, monkeypatch):
    """Bit for bit, with the same lines in the log; dispatches end where the state is looked at."""
    monkeypatch.setattr(feeding.Pace, "SECONDS", 1e9)
    assert train.train(config_of(), tmp_path, never, PROGRAMS) == 0
    # Saved after 12, 24 and 36, evaluated after 16 and 32.
    assert counts == [1, 2, 4, 5, 4, 8, 8, 4, 4]
    assert rows(tmp_path) == rows(one_by_one)
    assert final(tmp_path) == final(one_by_one)
    logged = [row["step"] for row in rows(tmp_path) if "training_loss" in row]
    assert logged == [1, *range(3, 40, 3), 40]


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, one_by_one, capsys):
    class Stop:
        exit_code = 143

        def __call__(self, step):
            return step >= 19

    assert train.train(config_of(), tmp_path, Stop(), PROGRAMS) == 143
    assert "saved: the same command goes on" in capsys.readouterr().out
    assert train.train(config_of(), tmp_path, never, PROGRAMS) == 0
    assert "resumed" in capsys.readouterr().out
    assert rows(tmp_path) == rows(one_by_one)
    assert final(tmp_path) == final(one_by_one)


KILLED = """
import json, pathlib, sys
from ml_collections import ConfigDict
from vitjax import train
train.train(ConfigDict(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2]), lambda step: False)
"""


def test_a_killed_run_resumes_bit_for_bit(tmp_path, one_by_one):
    """Killed in the middle of a dispatch, some way behind the checkpoint of step 12."""
    words = [sys.executable, "-c", KILLED, config_of().to_json(), str(tmp_path)]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("step 27/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "checkpoints" / "40").exists()
    assert train.train(config_of(), tmp_path, never, PROGRAMS) == 0
    assert rows(tmp_path) == rows(one_by_one)
    assert final(tmp_path) == final(one_by_one)


def test_another_mesh_and_a_divided_model_give_the_same_losses(one_by_one):
    mesh, sharded = (("data", 4), ("model", 2)), [(".*/Dense_0/kernel", (None, "model"))]
    run = experiment.build(config_of(mesh=mesh, sharding=sharded, evals=ConfigDict()))
    data, _ = run.load_on_device()
    state, measured = run.train_steps(data)(run.init_state(), 12)
    assert int(state.step) == 12
    here = np.asarray(measured["training_loss"])
    logged = {row["step"]: row["training_loss"] for row in rows(one_by_one) if "training_loss" in row}
    there = {step: loss for step, loss in logged.items() if step <= 12}
    assert len(there) == 5
    np.testing.assert_allclose([here[step - 1] for step in there], list(there.values()), rtol=1e-5)


def test_runs_that_differ_in_the_seed_share_a_program():
    programs, losses = {}, []
    for seed, shared in ((0, programs), (1, programs), (1, None)):
        run = experiment.build(config_of(seed=seed, evals=ConfigDict(), grad_accum=2), shared)
        data, _ = run.load_on_device()
        steps = run.train_steps(data)
        losses.append(np.asarray(steps(run.init_state(), 8)[1]["training_loss"])[:8])
    jitted = next(program for (name, _), program in programs.items() if name == "steps")
    assert jitted._cache_size() == 1 and len(programs) == 2
    np.testing.assert_array_equal(losses[1], losses[2])
    assert not np.array_equal(losses[0], losses[1])


def test_the_examples_of_a_loss_that_is_not_finite_are_named(tmp_path):
    """Those that the batch of its step held, though that step was one of many."""
    config = config_of(lr=1e30, evals=ConfigDict(), ckpt_steps=1000)
    with pytest.raises(TrainingFailed, match=r"at step \d+.*no checkpoint.*digits"):
        train.train(config, tmp_path, never)
    (path,) = tmp_path.glob("nonfinite-*.json")
    told = json.loads(path.read_text())
    run = experiment.build(config)
    data, _ = run.load_on_device()
    batch = jax.jit(lambda data, step: data.batch(data.indices(step)))(data, np.int32(told["step"] - 1))
    source = open_source("digits", split="train[:100]")
    np.testing.assert_array_equal(batch["label"], [source[index]["label"] for index in told["examples"]])


def test_an_evaluator_keeps_its_batches(monkeypatch):
    """The second pass asks the host for nothing and measures the same."""
    run = experiment.build(config_of())
    state, evaluator = run.init_state(), run.evaluators["val"][1]
    first = list(evaluator.run(state))
    monkeypatch.setattr(inputs, "_eval_batches", None)
    assert list(evaluator.run(state)) == first


def test_an_evaluator_may_be_told_to_keep_nothing():
    run = experiment.build(config_of(evals__val__on_device=False))
    list(run.evaluators["val"][1].run(run.init_state()))
    assert not run.evaluators["val"][1].input._kept


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(input__pp=f"decode|color_jitter|{PP}"), r"config.input.pp.*'color_jitter'.*on_device=False"),
        (dict(input__steps_per_dispatch=0), r"config.input.steps_per_dispatch = 0"),
        (dict(total_steps=2**28), r"32 bits"),
    ],
)
def test_what_cannot_be_is_refused_before_training(changes, says):
    with pytest.raises(UserError, match=says):
        experiment.build(config_of(**changes))


def test_only_where_batches_are_made_belongs_to_the_run():
    of = lambda **changes: fingerprint(config_of(**changes))
    assert of() == of(input__steps_per_dispatch=1)
    assert of() != of(input__on_device=False)


def test_recorded_logits_are_refused():
    run = experiment.build(config_of(evals=ConfigDict()))
    with pytest.raises(UserError, match=r"on_device = True does not go with config.task.teacher.logits"):
        experiment.check_on_device(
            run.source, run.batch_spec, run.mesh, 1, by_position={"_teacher_logits": 0}
        )
    with pytest.raises(UserError, match=r"config.input.on_device = False"):
        run.batches(0)


def test_check_counts_the_set():
    run = experiment.build(config_of(evals=ConfigDict()))
    # 100 digits of 10x10 pixels, as they are before the crop, in three channels, and a label each.
    assert check.num_bytes(run.set_spec) == 100 * (10 * 10 * 3 + 4)
    assert "training set: 29.7 KiB" in check.memory(run)


def test_the_pace_follows_the_clock():
    now = [0.0]
    pace = feeding.Pace(10, lambda: now[0])
    counts = []
    for seconds in (0, 0.1, 0.1, 0.1, 0.1, 0.3, 1.1, 1.1, 1.1, 1.1, 1.1, 0.1):
        now[0] += seconds
        counts.append(pace.next())
    assert counts == [1, 2, 4, 8, 10, 10, 5, 2, 1, 1, 1, 2]
    fixed = feeding.Pace(10, lambda: 99.0, adapt=False)
    assert [fixed.next() for _ in range(3)] == [1, 10, 10]


def test_waiting_for_the_devices_is_no_waiting_for_data():
    wall = metrics.WallTime()
    run = experiment.build(config_of(evals=ConfigDict(), total_steps=4))
    feed = feeding.open_feed(run, 0, wall, print)
    assert isinstance(feed, feeding.OnDevice) and feed.skipped == 0
    assert [feed.take(3).count, feed.take(1).count] == [1, 1]
    feed.close()
