"""The main job as a user runs it: trains, is killed, resumes bit for bit, and says what is wrong."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from vitjax.main import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
QUICK = ("--config", "configs/quickstart.py")
# A short run that draws on every kind of randomness: order, crops, mixup, dropout, stochastic depth.
SHORT = (
    *QUICK,
    "--config.total_steps=40",
    "--config.input.batch_size=32",
    "--config.model.depth=2",
    "--config.model.dropout=0.1",
    "--config.model.drop_path=0.1",
    "--config.optax_name=scale_by_adam",
    "--config.ema={'decay': 0.9}",
    "--config.ckpt_steps=5",
    "--config.log_training_steps=1",
    "--config.evals.val.log_steps=10",
    "--config.report=False",
)
# Times and rates, which no two runs share.
CIRCUMSTANCES = ("img/sec", "img/sec/core", "data_wait", "uptime", "core_hours")


def start(*args, **options):
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "vitjax.main", *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CIRCUMSTANCES} for row in rows]


def final_arrays(workdir):
    """Step, names, types, shapes and checksums of every leaf of the newest checkpoint, as recorded in it."""
    from etils import epath

    from vitjax.checkpoint_files import read_record

    newest = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    return newest, read_record(epath.Path(workdir / "checkpoints" / str(newest)))["leaves"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    code, output = finish(start(*SHORT, "--workdir", workdir))
    assert code == 0, output
    return workdir


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, uninterrupted, workers):
    # Late enough that the checkpoint of step 5 is whole (that of step 10 waited for it), and early enough
    # that the run cannot end before the signal arrives.
    kill_at = random.randint(11, 28)
    print("killed at step", kill_at)
    command = (*SHORT, "--workdir", tmp_path, f"--config.input.workers={workers}")
    process = start(*command)
    for line in process.stdout:
        if line.startswith(f"step {kill_at}/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    code, output = finish(start(*command))
    assert code == 0, output
    assert "resumed" in output
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert final_arrays(tmp_path) == final_arrays(uninterrupted)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, uninterrupted):
    command = (*SHORT, "--config.ckpt_steps=1000", "--workdir", tmp_path)
    process = start(*command)
    for line in process.stdout:
        if line.startswith("step 12/"):
            process.send_signal(signal.SIGTERM)
            break
    output = process.stdout.read()
    assert process.wait() == 128 + signal.SIGTERM, output
    assert re.search(r"stopped at step \d+, saved: the same command goes on", output)
    code, output = finish(start(*command))
    assert code == 0, output
    assert metrics(tmp_path) == metrics(uninterrupted)
    assert final_arrays(tmp_path) == final_arrays(uninterrupted)


def test_ctrl_c_saves_though_it_reaches_the_workers_too(tmp_path, uninterrupted):
    command = (*SHORT, "--config.ckpt_steps=1000", "--config.input.workers=1", "--workdir", tmp_path)
    process = start(*command, start_new_session=True)
    for line in process.stdout:
        if line.startswith("step 9/"):
            os.killpg(process.pid, signal.SIGINT)
            break
    output = process.stdout.read()
    assert process.wait() == 128 + signal.SIGINT, output
    assert "saved: the same command goes on from there" in output and "Traceback" not in output
    code, output = finish(start(*command))
    assert code == 0, output
    assert final_arrays(tmp_path) == final_arrays(uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted):
    before = final_arrays(uninterrupted)
    code, output = finish(start(*SHORT, "--workdir", uninterrupted))
    assert code == 0, output
    assert final_arrays(uninterrupted) == before


def test_eval_only_measures_what_training_measured(uninterrupted, capsys):
    trained = next(row for row in reversed(metrics(uninterrupted)) if "val/prec@1" in row)
    code, output = finish(start(*SHORT, "--workdir", uninterrupted, "--eval_only"))
    assert code == 0, output
    assert f"step 40 val/prec@1 {trained['val/prec@1']:.6g}" in output


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    code, output = finish(start(*QUICK, "--workdir", workdir))
    assert code == 0, output
    return workdir, output


@pytest.mark.slow
def test_quickstart_reaches_its_accuracy(quickstart):
    workdir, output = quickstart
    last = metrics(workdir)[-1]
    assert last["val/prec@1"] >= 0.97
    assert last["val/loss"] < 0.3
    assert re.search(r"^step \d+/\d+ .*loss .*images/s .*eta .*data_wait", output, re.MULTILINE)


@pytest.mark.slow
def test_quickstart_leaves_a_record_of_itself(quickstart):
    workdir, _ = quickstart
    assert json.loads((workdir / "config.json").read_text())["model"]["name"].startswith("vit_")
    about = json.loads((workdir / "run.json").read_text())
    assert about["versions"]["jax"] and about["devices"] and "git" in about
    assert set(about["wall_time"]) >= {"start-up", "compile", "data wait", "step", "eval", "checkpoint"}
    assert "encoderblock_3" in (workdir / "parameters.txt").read_text()
    assert "<svg" in (workdir / "report.html").read_text()
    first = metrics(workdir)[0]
    assert first["step"] == 1 and first["learning_rate"] == 0
    assert {"training_loss", "l2_grads", "l2_params", "l2_updates", "epoch", "examples_seen"} <= set(first)


def refusal(capsys, *args):
    """Runs the command line in this process; returns its message, which must be one paragraph."""
    code = main([str(arg) for arg in args])
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ") and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("--config.lrr=1", r"unknown config key 'lrr' .*Did you mean 'lr'"),
        ("--config.model.dropuot=0.1", r"model\.dropuot .*Did you mean 'dropout'"),
        ("--config.model.name=vit_s", r"names no model"),
        ("--config.input.batchsize=1", r"'input\.batchsize'.*Did you mean 'batch_size'"),
        ("--config.input.batch_size=100", r"= 100 does not divide by 8 devices .*take 96 or 104"),
        ("--config.input.data=digit", r"Did you mean 'digits'"),
        ("--config.input.split=trian", r"trian.*Did you mean 'train'"),
        ("--config.input.pp=decode|resise(8)", r"config\.input\.pp: .*'resise'.*Did you mean 'resize'"),
        ("--config.task.name=clasify", r"Did you mean 'classify'"),
        ("--config.task.loss=sigmoid", r"sigmoid_xent"),
        ("--config.task.smoothing=0.1", r"'task\.smoothing'.*Did you mean 'label_smoothing'"),
        ("--config.optax.b3=0.1", r"has no option 'b3'"),
        ("--config.schedule.warmup=3", r"warmup"),
        ("--config.schedule.decay_type=cosin", r"Did you mean 'cosine'"),
        ("--config.evals.val.type=acuracy", r"Did you mean 'accuracy'"),
        ("--config.evals.val.batch=8", r"evals\.val\.batch.*Did you mean 'batch_size'"),
        ("--config.total_epochs=-1", r"total_epochs=-1"),
        ("--config.mesh=(('data', 3),)", r"does not fit 8 devices"),
        ("--config.ema={'decy': 0.9}", r"'ema\.decy'.*Did you mean 'decay'"),
        ("--config.num_classes=5", r"label .* 5 classes"),
        ("--config.input.on_error=ignore", r"'raise' or 'skip'"),
        ("--config.num_classes=0", r"config\.num_classes = 0: 1 or more"),
        ("--config.best_metric=val/acc", r"measured by no evaluator.*There are: val/prec@1"),
        ("--config.best_metric=min:vel/loss", r"measured by no evaluator.*Did you mean 'val/loss'"),
        ("--config.grad_accum=0", r"config\.grad_accum = 0 must be 1 or more"),
        ("--config.input.workers=-5", r"config\.input\.workers = -5"),
        ("--config.matmul_precision=higest", r"Did you mean 'highest'"),
        ("--config.mesh=('data', -1)", r"config\.mesh .* must be \(axis, size\) pairs"),
        ("--config.mesh=(('data', -1), ('data', 1))", r"names an axis twice"),
        ("--config.mesh=(('data', -1), ('model', 0))", r"does not fit 8 devices"),
        ("--config.sharding=('.*', 'fsdp')", r"must be a pair \(regex, placement\)"),
        ("--config.sharding=[('*', 'fsdp')]", r"'\*' is not a regular expression"),
        ("--config.sharding=[('haed/.*', 'fsdp')]", r"'haed/\.\*' matches no parameter"),
        ("--config.sharding=[('.*', None)]", r"unknown placement None"),
        ("--config.sharding=[('head/kernel', ('data', 'data'))]", r"two dimensions of head/kernel over one"),
        ("--config.model.width=0", r"config\.model: width=0 must be 1 or more"),
        ("--config.model.dropout=x", r"'model\.dropout' = 'x' is of type str; it must be float"),
        ("--config.model.scan=yes", r"'model\.scan' = 'yes' is of type str; it must be bool"),
        ("--config.model.num_classes=10", r"set config\.num_classes"),
        ("--config.task.name=['classify']", r"Did you mean 'classify'"),
        ("--config.optax={'b2': None}", r"config\.optax\.b2=None must be a number, such as 0\.999"),
        (
            "--config.input.pp=decode|resize(16)|value_range(-1, 1)",
            r"input\.pp: Classification needs 'labels'",
        ),
        ("--config.input.pp=decode|keep('label')", r"input\.pp: Classification needs 'image'"),
        ("--config.evals.other=3", r"config\.evals\.other = 3 must be a section"),
        ("--config.evals.val.split=tset", r"config\.evals\.val: split 'tset' .*Did you mean 'test'"),
        ("--config.evals.val.workers=x", r"'evals\.val\.workers' = 'x' is of type str; it must be int"),
        ("--config.evals.val.type=os.path", r"path is no class"),
        ("--config.evals.val.pp=decode|resize(16)|value_range(-1, 1)", r"config\.evals\.val: .*no 'labels'"),
        ("--config.evals.val.log_steps=x", r"config\.evals\.val: log_steps='x' is not a number"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, capsys, override, says):
    error = refusal(capsys, *QUICK, "--workdir", tmp_path, "--config.total_steps=2", override)
    assert re.search(says, error), error
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))


def test_training_needs_a_workdir(capsys):
    assert "--workdir DIR is required" in refusal(capsys, *QUICK)


def test_an_empty_workdir_is_none(capsys):
    assert "--workdir DIR is required" in refusal(capsys, *QUICK, "--workdir", "")


def test_a_best_metric_may_say_which_way_is_better():
    from vitjax import config, experiment

    run = experiment.build(config.load(QUICK[1], {"best_metric": "min:val/loss"}))
    assert run.best_metric == "val/loss"


def test_unknown_options_are_refused(capsys):
    assert "--wrokdir" in refusal(capsys, *QUICK, "--wrokdir", "x")


def test_imagenet_absent_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    error = refusal(capsys, "--config", "configs/augreg.py:vit_s32", "--workdir", tmp_path)
    assert "python -m vitjax.data.prepare" in error and "data=digits" in error and "folder" in error


def test_a_workdir_of_another_config_is_refused(uninterrupted, capsys):
    before = final_arrays(uninterrupted)
    error = refusal(capsys, *SHORT, "--workdir", uninterrupted, "--config.lr=0.5")
    assert "lr" in error and "0.5" in error and "workdir" in error
    assert final_arrays(uninterrupted) == before


def test_a_diverging_run_stops_with_its_step_checkpoint_and_examples(tmp_path, capsys):
    code = main([*SHORT, "--workdir", str(tmp_path), "--config.lr=1e30", "--config.grad_clip_norm=None"])
    error = capsys.readouterr().err
    assert code == 3 and "Traceback" not in error
    step = int(re.search(r"at step (\d+)", error)[1])
    assert "checkpoint" in error
    examples = json.loads((tmp_path / f"nonfinite-{step}.json").read_text())["examples"]
    assert len(examples) == 32 and str(examples[0]) in error


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert str(blocked) in refusal(capsys, *SHORT, "--workdir", blocked)


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory):
    """Two classes of ten PNG files each, made of the digits 0 and 1."""
    import cv2

    from vitjax.data.sources import open_source

    root, source, count = tmp_path_factory.mktemp("photos"), open_source("digits"), {0: 0, 1: 0}
    for i in range(len(source)):
        image, label = source[i]["image"], int(source[i]["label"])
        if count.get(label, 10) < 10:
            (root / f"class{label}").mkdir(exist_ok=True)
            cv2.imwrite(str(root / f"class{label}" / f"{count[label]}.png"), image)
            count[label] += 1
    return root


def folder_command(root, workdir):
    pp = "decode|resize(16)|value_range(-1, 1)|onehot({num_classes}, key='label', key_result='labels')"
    return (
        *(*SHORT, "--workdir", workdir, f"--config.input.data=folder:{root}", "--config.num_classes=2"),
        *(
            f"--config.input.pp={pp}",
            f"--config.evals.val.data=folder:{root}",
            "--config.evals.val.split=train",
        ),
        *(f"--config.evals.val.pp={pp}", "--config.total_steps=4"),
    )


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_broken_image_is_named_or_passed_over_and_counted(tmp_path, photo_folder, capsys, damage):
    import shutil

    root = tmp_path / "photos"
    shutil.copytree(photo_folder, root)
    victim = root / "class1" / "3.png"
    victim.write_bytes(victim.read_bytes()[:60] if damage == "truncated" else b"not an image at all")
    error = refusal(capsys, *folder_command(root, tmp_path / "stops"))
    assert "class1/3.png" in error and "on_error" in error
    assert (
        main(
            [str(word) for word in folder_command(root, tmp_path / "goes")] + ["--config.input.on_error=skip"]
        )
        == 0
    )
    last = metrics(tmp_path / "goes")[-1]
    assert last["data/skipped"] > 0 and last["val/skipped"] == 1


def test_an_empty_class_folder_is_named(tmp_path, photo_folder, capsys):
    import shutil

    shutil.copytree(photo_folder, tmp_path / "photos")
    (tmp_path / "photos" / "zebra").mkdir()
    assert "zebra" in refusal(capsys, *folder_command(tmp_path / "photos", tmp_path / "w"))


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
    """A file-size limit stands for the disk: the writes of the second checkpoint fail as on a full one."""
    import resource

    command = (*SHORT, "--workdir", tmp_path, "--config.total_steps=40")
    process = start(*command)
    for line in process.stdout:
        if line.startswith("step 12/"):
            # From here on no file may grow beyond a kilobyte.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, 1024))
            break
    output = process.stdout.read()
    assert process.wait() == 2, output
    assert "error: " in output and "Traceback" not in output, output
    code, output = finish(start(*command))
    assert code == 0, output
    assert "resumed" in output


def test_check_builds_by_shape_and_trains_nothing(capsys):
    assert main(["--config", "configs/augreg.py:vit_s32,data=digits", "--check"]) == 0
    printed = capsys.readouterr().out
    for part in (
        "Total: ",
        "optimizer",
        "activations",
        "steps of 64 examples",
        "8 x cpu",
        "image: uint8[64, 224",
    ):
        assert part in printed, part


def test_two_processes_train_as_one(tmp_path):
    """Two processes of two devices each give the losses of one process with four."""
    import portpicker

    port = portpicker.pick_unused_port()
    command = (
        *SHORT,
        "--config.total_steps=6",
        "--config.evals.val.batch_size=8",
        "--config.input.workers=0",
    )

    def launch(workdir, devices, index, count):
        env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if count > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"}
            env |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        words = [sys.executable, "-m", "vitjax.main", *command, "--workdir", str(workdir)]
        words += ["--multihost"] if count > 1 else []
        return subprocess.Popen(
            words, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    for process in [launch(tmp_path / "two", 2, i, 2) for i in range(2)] + [
        launch(tmp_path / "one", 4, 0, 1)
    ]:
        code, output = finish(process)
        assert code == 0, output
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert len(two) == len(one) == 6
    np.testing.assert_allclose(
        [row["training_loss"] for row in two], [row["training_loss"] for row in one], rtol=1e-5
    )
    assert two[-1]["val/prec@1"] == pytest.approx(one[-1]["val/prec@1"], abs=1 / 360)
