"""Sweeps as they are run: killed and gone on with, side by side, failing, on a cluster."""

import contextlib
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from vitjax.errors import TrainingFailed, UserError
from vitjax.sweep import devices, run, status, trials, worker
from vitjax.sweep.folder import Folder, State, open_lock
from vitjax.sweep.main import main

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 120
# Times and rates, which no two runs share.
CIRCUMSTANCES = ("img/sec", "img/sec/core", "data_wait", "uptime", "core_hours")


def sweep_file(folder, lrs=(1e-3, 3e-3, 1e-2), seeds=(0,), **overrides):
    """Trials of a second each: digits, one block of width 8, dropout and mixup to draw random numbers."""
    tiny = {
        "total_steps": STEPS,
        "model.depth": 1,
        "model.width": 8,
        "model.num_heads": 2,
        "model.dropout": 0.1,
        "input.batch_size": 8,
        "evals.val.log_steps": STEPS,
        "ckpt_steps": 20,
        "log_training_steps": 5,
        **overrides,
    }
    path = folder / "s.py"
    path.write_text(
        "from vitjax.sweep import grid\n"
        "def get_sweep():\n"
        f"    return grid.Sweep({str(ROOT / 'configs/quickstart.py')!r}, grid.keys({{'lr': {lrs}}}),\n"
        f"                      {seeds}, {tiny})\n"
    )
    return path


def start(*args, env=None):
    """A runner in a session of its own, which also holds all that it starts."""
    env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT), **(env or {})}
    command = [sys.executable, "-m", "vitjax.sweep", "run", *map(str, args)]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def final(workdir):
    """Checksums of every leaf of the last checkpoint, and all metrics but times."""
    from etils import epath

    from vitjax.checkpoint_files import read_record

    leaves = read_record(epath.Path(workdir / "checkpoints" / str(STEPS)))["leaves"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return leaves, [{k: v for k, v in row.items() if k not in CIRCUMSTANCES} for row in rows]


@pytest.mark.slow
def test_a_sweep_killed_thrice_and_run_by_two_ends_as_if_undisturbed(tmp_path):
    path = sweep_file(tmp_path)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    undisturbed = start("--sweep", path, "--workdir", calm, "--executor", "inline")

    folder = Folder(stormy)
    names = [f"lr_{lr}-seed_0" for lr in (0.001, 0.003, 0.01)]
    for victim, when in ((names[0], 31), (names[1], 52)):
        runner = start("--sweep", path, "--workdir", stormy)
        wait_for(lambda: (status.progress(folder, victim)[0] or 0) >= when)  # noqa: B023
        os.killpg(runner.pid, signal.SIGKILL)  # runner, submitit's controller and worker
        runner.communicate()
        killed = lambda: status.rows(folder, [victim])[0].status == "interrupted"  # noqa: B023
        wait_for(killed, seconds=20)  # the kernel takes a moment to end a process

    runner = start("--sweep", path, "--workdir", stormy, "--parallel", 2)
    wait_for(lambda: status.rows(folder, [names[2]])[0].status == "running")
    runner.send_signal(signal.SIGTERM)
    code, output = finish(runner)
    assert code == 128 + signal.SIGTERM, output
    assert "stopped: the same command goes on from there" in output
    assert not any(folder.is_claimed(name) for name in names)
    assert folder.state(names[2]).status == "preempted"
    assert "saved: the same command goes on from there" in folder.log_end(names[2])

    one = start("--sweep", path, "--workdir", stormy)
    two = start("--sweep", path, "--workdir", stormy, "--executor", "inline")
    for process in (undisturbed, one, two):
        code, output = finish(process)
        assert code == 0, output
    for name in names:
        assert final(stormy / "trials" / name) == final(calm / "trials" / name), name
        state, log = folder.state(name), folder.log(name).read_text()
        assert state.status == "done" and state.failures == 0
        # Never trained to its end twice, and no attempt without its line in the log.
        assert log.count(f"step {STEPS}/{STEPS} ") == 1
        assert log.count("--- ") == state.attempts
    # Each of the three stops cut off what was running then (two trials, the last time), nothing else.
    assert sum(folder.state(name).attempts for name in names) <= len(names) + 4


def test_failures_are_retried_reported_and_do_not_stop_the_others(tmp_path, monkeypatch, capsys):
    """In process, with training replaced: what matters is what the worker makes of its outcome."""
    calls = []

    def train(trial, workdir, stop, programs):
        calls.append(trial.name)
        print(f"about to train {trial.name}")
        if trial.seed == 1:
            raise TrainingFailed("training_loss is nan\nat step 3")
        if trial.seed == 2 and calls.count(trial.name) == 1:
            raise RuntimeError("the disk hiccuped")
        if trial.seed == 3:
            sys.exit(5)
        return 0

    monkeypatch.setattr(worker, "train", train)
    path = sweep_file(tmp_path, lrs=(1e-3,), seeds=(0, 1, 2, 3))
    arguments = ["run", "--sweep", str(path), "--workdir", str(tmp_path / "w"), "--executor", "inline"]
    assert main([*arguments, "--retries", "2"]) == 3
    name = "lr_0.001-seed_{}".format
    assert [calls.count(name(seed)) for seed in range(4)] == [1, 3, 2, 3]
    assert calls[:4] == [name(seed) for seed in range(4)]  # failed ones come after the others
    folder = Folder(tmp_path / "w")
    diverged, hiccuped, exited = (folder.state(name(seed)) for seed in (1, 2, 3))
    assert (diverged.status, diverged.attempts, diverged.failures) == ("failed", 3, 3)
    assert diverged.error == "training_loss is nan at step 3"
    assert (hiccuped.status, hiccuped.attempts, hiccuped.failures) == ("done", 2, 1)
    assert exited.error == "SystemExit: 5"
    assert "the disk hiccuped" in folder.log(name(2)).read_text()
    output = capsys.readouterr().out
    assert "2/4 done, 2 failed" in output
    assert f"{name(1)} failed 3 times: training_loss is nan at step 3" in output
    assert "error: training_loss is nan" in output.partition("failed 3 times")[2]  # the end of its log
    assert "about to train" not in output.partition(f"\n{name(1)} failed")[0]  # it went to log.txt

    calls.clear()
    assert main([*arguments, "--retries", "2"]) == 3
    assert not calls  # finished trials are skipped, and those given up stay so
    assert main([*arguments, "--retries", "3"]) == 3
    assert sorted(calls) == [name(1), name(3)]
    assert main(["status", "--workdir", str(tmp_path / "w")]) == 0
    table = capsys.readouterr().out
    assert f"{name(1)}  failed" in table and "training_loss is nan at step 3" in table


def test_shares_of_an_index_are_disjoint_and_complete(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(worker, "train", lambda trial, workdir, stop, programs: calls.append(trial.name) or 0)
    path = sweep_file(tmp_path, lrs=(1e-3, 3e-3), seeds=(0, 1, 2))
    for index in range(4):
        before = len(calls)
        assert main(["run", "--sweep", str(path), "--workdir", str(tmp_path), "--index", f"{index}/4"]) == 0
        assert len(calls) - before == (2 if index < 2 else 1)
    assert len(set(calls)) == len(calls) == 6


def test_a_trial_in_hand_is_left_alone(tmp_path):
    plan = trials.read(str(sweep_file(tmp_path, lrs=(1e-3, 3e-3))))
    folder = Folder(tmp_path / "w")
    folder.settle(plan)
    first, second = plan.trials
    with folder.claim(first) as mine:
        assert mine
        folder.write_state(first, State("running", attempts=1))
        with folder.claim(first) as also_mine:
            assert not also_mine
        assert [row.status for row in status.rows(folder, plan.trials)] == ["running", "pending"]
        taken = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                worker, "train", lambda trial, workdir, stop, programs: taken.append(trial.name) or 0
            )
            worker.run_trials(folder, plan, list(plan.trials), lambda step: False, retries=0)
        assert taken == [second]
    assert status.rows(folder, [first])[0].status == "interrupted"


def test_many_claim_at_once_and_one_gets_it(tmp_path):
    folder, got, together = Folder(tmp_path), [], threading.Barrier(8)

    def claim():
        together.wait()
        with folder.claim("t") as mine:
            got.append(mine)
            together.wait()

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]


def test_a_changed_config_file_is_not_trained(tmp_path):
    path = sweep_file(tmp_path, seeds=(0,))
    config = tmp_path / "c.py"
    config.write_text((ROOT / "configs/quickstart.py").read_text())
    path.write_text(path.read_text().replace(str(ROOT / "configs/quickstart.py"), str(config)))
    plan = trials.read(str(path))
    config.write_text(config.read_text().replace("config.wd = 1e-4", "config.wd = 1e-2"))
    with pytest.raises(UserError, match="no longer says what it did"):
        worker.train(next(iter(plan.trials.values())), tmp_path, None, {})


def test_a_dead_worker_counts_as_a_failure_of_its_trial(tmp_path):
    """A worker that kills itself, as the out-of-memory killer would, under the real runner."""
    path = sweep_file(tmp_path, lrs=(1e-3,), seeds=(0,))
    config = tmp_path / "c.py"
    text = (ROOT / "configs/quickstart.py").read_text()
    # Harmless where the sweep is read, deadly where the worker loads it.
    deadly = "import os, sys\n    if 'submitit' in sys.modules: os.kill(os.getpid(), 9)\n    "
    config.write_text(text.replace("config = ConfigDict()", deadly + "config = ConfigDict()"))
    path.write_text(path.read_text().replace(str(ROOT / "configs/quickstart.py"), str(config)))
    code, output = finish(start("--sweep", path, "--workdir", tmp_path / "w", "--retries", 1))
    assert code == 3, output
    state = Folder(tmp_path / "w").state("lr_0.001-seed_0")
    assert (state.status, state.failures) == ("failed", 2)
    assert "its process died" in state.error and "failed 2 times" in output


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    from vitjax.sweep import folder as folder_lib

    monkeypatch.setattr(folder_lib.fcntl, "flock", lambda *_: None)  # as some network mounts do
    with pytest.raises(UserError, match="no working locks"):
        Folder(tmp_path).settle(trials.read(str(sweep_file(tmp_path))))


def test_workers_stop_when_their_runner_is_gone(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(worker, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(worker.os, "kill", lambda pid, number: told.append((pid, number)))
    with open_lock(tmp_path / "runner.lock") as lock:
        lock.wait()
        thread = threading.Thread(target=worker._stop_without, args=(tmp_path / "runner.lock",))
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive() and not told
    thread.join(timeout=10)
    assert told == [(os.getpid(), signal.SIGTERM)]


SBATCH = """#!/bin/bash
# Does what Slurm does with one job: runs the script, and again when it was queued again.
cp "$1" "{folder}/sbatch.sh"
export SLURM_JOB_ID=7
(while :; do
  rm -f "{folder}/requeued"
  bash "{folder}/sbatch.sh" > "{folder}/slurm.log" 2>&1
  [ -e "{folder}/requeued" ] || break
done) < /dev/null > /dev/null 2>&1 &
echo "Submitted batch job 7"
"""
# srun's own options end where the command begins.
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [[ "$1" == --unbuffered ]] && shift || shift 2; done
exec "$@"
"""


@pytest.mark.slow
def test_slurm_preempts_and_queues_again(tmp_path):
    """With programs in the place of Slurm's own: what is checked is what the runner and the worker do."""
    for name, text in {
        "sbatch": SBATCH.format(folder=tmp_path),
        "srun": SRUN,
        "scontrol": f'#!/bin/bash\necho "$@" > "{tmp_path}/requeued"\n',
    }.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = sweep_file(tmp_path, lrs=(1e-3,), total_steps=1500, ckpt_steps=10_000)
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    runner = start(
        "--sweep", path, "--workdir", tmp_path / "w", "--executor", "slurm", "--slurm", "partition=long",
        "time=30", env=env,
    )  # fmt: skip
    folder, name = Folder(tmp_path / "w"), "lr_0.001-seed_0"
    try:
        wait_for(lambda: (status.progress(folder, name)[0] or 0) >= 10)
        found = subprocess.run(["pgrep", "-g", str(runner.pid), "-f", "submitit.core._submit"],
                               capture_output=True, text=True)  # fmt: skip
        os.kill(int(found.stdout.split()[-1]), signal.SIGUSR2)
        wait_for(lambda: folder.state(name).attempts == 2)
        assert "stopped at step" in folder.log(name).read_text()
        code, output = finish(runner)
        assert code == 0, output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)
    script = (tmp_path / "sbatch.sh").read_text()
    for flag in ("--partition=long", "--time=30", "--requeue", "--signal=USR2@120"):
        assert f"#SBATCH {flag}\n" in script
    log = folder.log(name).read_text()
    assert "resumed from" in log and log.count("step 1500/1500 ") == 1
    assert "submitted job 7" in output and "1/1 done" in output


def test_slurm_options_are_checked():
    assert run.slurm_options(["time=60", "partition=a-b", "gpus_per_node=2"]) == {
        "time": 60,
        "partition": "a-b",
        "gpus_per_node": 2,
    }
    with pytest.raises(UserError, match="Did you mean 'partition'"):
        run.slurm_options(["partitoin=long"])


def test_cores_and_chips_are_dealt_out(monkeypatch):
    assert devices.deal([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3, 4]]
    assert devices.deal([0, 1], 3) == [[0], [1], [0]]
    monkeypatch.setattr(devices, "_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(devices, "accelerators", lambda: (devices.CUDA, ["0", "1"]))
    one, two = devices.shares(2)
    assert (one.cores, two.cores) == ([0, 1], [2, 3])
    assert (one.environment, two.environment) == ({devices.CUDA: "0"}, {devices.CUDA: "1"})
    crowded = devices.shares(4)
    assert [share.environment[devices.CUDA] for share in crowded] == ["0", "1", "0", "1"]
    assert crowded[0].environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    monkeypatch.setattr(devices, "accelerators", lambda: (devices.TPU, ["0", "1", "2", "3"]))
    assert devices.shares(2)[1].environment[devices.TPU] == "2,3"
    assert devices.shares(2)[1].environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    with pytest.raises(UserError, match="4 TPU chips"):
        devices.shares(3)


def test_what_c_code_prints_is_logged_too(tmp_path):
    with worker.output_to(tmp_path / "log.txt"):
        print("from python")
        os.write(1, b"from c\n")
        subprocess.run(["echo", "from a child"], check=True)
        os.write(2, b"an error\n")
    with worker.output_to(tmp_path / "log.txt"):
        print("again")
    log = (tmp_path / "log.txt").read_text()
    assert log == "from python\nfrom c\nfrom a child\nan error\nagain\n"
