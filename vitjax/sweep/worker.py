"""A worker: takes one trial after the other and trains it, all in one process.

What a process pays once - imports, the backend, traced and compiled programs - is paid once for many trials.
"""

import contextlib
import dataclasses
import faulthandler
import gc
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

from vitjax.errors import TrainingFailed, UserError
from vitjax.host_memory import jax_runs_on_cpu, keep_freed_memory
from vitjax.sweep.devices import Share
from vitjax.sweep.folder import DONE, FAILED, PENDING, PREEMPTED, RUNNING, Folder, State, now, open_lock
from vitjax.sweep.trials import Plan, Trial, fingerprint

# How often a worker looks whether the runner that started it is still there, in seconds.
WATCH_SECONDS = 2.0
# In which order trials are taken. One whose process died comes late: if it kills its worker every time, the
# others are done by then.
ORDER = {PENDING: 0, PREEMPTED: 0, RUNNING: 1, FAILED: 2}

# Jitted functions that the trials of one worker share, see `vitjax.experiment.build`.
Programs = dict[tuple[str, str], Callable]


@dataclasses.dataclass
class Worker:
    """What submitit starts: runs trials until none is left.

    Attributes:
      folder: of the sweep.
      plan: its trials.
      retries: how often a failed trial is tried again.
      share: cores and accelerators of this worker.
      runner_lock: file that the runner holds a lock on as long as it lives; None lets the worker outlive it.
    """

    folder: Folder
    plan: Plan
    retries: int
    share: Share
    runner_lock: pathlib.Path | None = None

    def __call__(self) -> None:
        """Runs trials. On SIGTERM or SIGINT saves and returns; on submitit's signal is queued again, too."""
        try:
            self._run()
        except Exception:  # submitit would note a result: to the runner this worker is to be a dead one
            traceback.print_exc()
            sys.exit(1)

    def _run(self) -> None:
        faulthandler.enable()
        self.share.take()
        requeue = signal.getsignal(signal.SIGUSR2)
        preempted = threading.Event()

        def on_preemption(number: int, frame: FrameType | None) -> None:
            preempted.set()
            os.kill(os.getpid(), signal.SIGTERM)

        with signals_wait():
            stop = _prepare()
            signal.signal(signal.SIGUSR2, on_preemption)
        with stop:
            if self.runner_lock:
                threading.Thread(target=_stop_without, args=(self.runner_lock,), daemon=True).start()
            run_trials(self.folder, self.plan, list(self.plan.trials), stop, self.retries, worker_id())
        if preempted.is_set() and callable(requeue):
            requeue(signal.SIGUSR2, None)

    def checkpoint(self) -> Any:
        """What submitit runs after a preemption: the same, since all that matters is in the folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def worker_id() -> str:
    """The id by which submitit and the runner know this worker."""
    from submitit import JobEnvironment

    return JobEnvironment().job_id


def run_here(folder: Folder, plan: Plan, names: Sequence[str], retries: int) -> int | None:
    """Runs trials in this process; returns the exit code if it was told to stop, else None."""
    with _prepare() as stop:
        run_trials(folder, plan, names, stop, retries)
        return stop.exit_code if stop(0) else None


def _prepare() -> Any:
    """Makes this process ready to train; returns a `Preempted`."""
    from vitjax.main import keep_compiled_programs

    keep_compiled_programs()
    if jax_runs_on_cpu():
        keep_freed_memory()
    from vitjax.preemption import Preempted

    return Preempted()


def run_trials(
    folder: Folder,
    plan: Plan,
    names: Sequence[str],
    stop: Callable[[int], bool],
    retries: int,
    worker: str | None = None,
) -> None:
    """Takes trials that are not finished and that nobody has, one after the other, until none is left.

    Args:
      folder: of the sweep.
      plan: its trials.
      names: those that may be taken.
      stop: `vitjax.preemption.Preempted`.
      retries: how often a failed trial is tried again.
      worker: id noted in trial.json.
    """
    programs: Programs = {}
    looks = 0
    while looks < 2 and not stop(0):
        if take_one(folder, plan, names, stop, retries, worker, programs):
            looks = 0
        else:  # who asks for the status of a trial holds its lock for a moment: look twice
            time.sleep(0.2 * looks)
            looks += 1


def take_one(
    folder: Folder,
    plan: Plan,
    names: Sequence[str],
    stop: Callable[[int], bool],
    retries: int,
    worker: str | None,
    programs: Programs,
) -> str | None:
    """Runs the first trial that is to be had; returns its name, or None if there is none."""
    states = {name: folder.state(name) for name in names}
    open_names = [name for name in names if is_open(states[name], retries)]
    for name in sorted(open_names, key=lambda name: ORDER[states[name].status]):
        with folder.claim(name) as mine:
            # Read again under the lock: another worker may have finished it in between.
            if mine and is_open(folder.state(name), retries):
                run_trial(folder, plan.trials[name], stop, worker, programs)
                return name
    return None


def is_open(state: State, retries: int) -> bool:
    """Whether a trial in this state is still to be run."""
    return state.status != DONE and not (state.status == FAILED and state.failures > retries)


def run_trial(
    folder: Folder,
    trial: Trial,
    stop: Callable[[int], bool],
    worker: str | None,
    programs: Programs,
) -> None:
    """Trains a trial whose lock is held, and notes how that went. Nothing that goes wrong in it gets out."""
    before, start = folder.state(trial.name), time.perf_counter()
    state = dataclasses.replace(
        before,
        status=RUNNING,
        attempts=before.attempts + 1,
        started=before.started or now(),
        finished=None,
        worker=worker,
    )
    folder.write_state(trial.name, state)
    error = None
    with output_to(folder.log(trial.name)):
        print(f"--- {trial.name}, attempt {state.attempts}, {now()}", flush=True)
        try:
            status = DONE if train(trial, folder.trial(trial.name), stop, programs) == 0 else PREEMPTED
        except (UserError, TrainingFailed) as failure:
            status, error = FAILED, str(failure)
            print(f"error: {error}", file=sys.stderr)
        except (Exception, SystemExit) as failure:
            status, error = FAILED, f"{type(failure).__name__}: {failure}"
            traceback.print_exc()
    gc.collect()  # the states of the trial, before the next one makes its own
    folder.write_state(
        trial.name,
        dataclasses.replace(
            state,
            status=status,
            failures=state.failures + (status == FAILED),
            error=one_line(error) if error else (None if status == DONE else state.error),
            finished=now(),
            seconds=state.seconds + time.perf_counter() - start,
        ),
    )


def train(trial: Trial, workdir: pathlib.Path, stop: Any, programs: Programs) -> int:
    """Trains a trial in its workdir, as `vitjax.main` does; returns its exit code."""
    from vitjax.main import set_matmul_precision
    from vitjax.train import train

    config = trial.load()
    if fingerprint(config) != trial.fingerprint:
        raise UserError(
            f"{trial.config} no longer says what it did when the sweep was started: set the config "
            "file back, or start a sweep in another --workdir."
        )
    set_matmul_precision(config)
    return train(config, workdir, stop, programs)


def note_death(folder: Folder, plan: Plan, worker: str, log: pathlib.Path) -> list[str]:
    """Notes a failure for the trial that a worker had when its process died; returns its name in a list."""
    dead = []
    for name in plan.trials:
        state = folder.state(name)
        if state.status != RUNNING or state.worker != worker:
            continue
        with folder.claim(name) as mine:
            if not mine or folder.state(name) != state:
                continue
            error = f"its process died: killed, out of memory, or a crash (see {log})"
            state = dataclasses.replace(
                state, status=FAILED, failures=state.failures + 1, error=error, finished=now()
            )
            folder.write_state(name, state)
            dead.append(name)
    return dead


def one_line(text: str, most: int = 500) -> str:
    """A message in one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 4] + " ..."


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Holds signals back until the handlers that save are in place."""
    held = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def output_to(path: pathlib.Path) -> Iterator[None]:
    """Appends to a file what is printed inside the block, by Python, libraries in C and child processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with open(path, "ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with (
            contextlib.redirect_stdout(_text(sys.stdout, 1)),
            contextlib.redirect_stderr(_text(sys.stderr, 2)),
        ):
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        for number, descriptor in enumerate(saved, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def _text(stream: TextIO, number: int) -> TextIO:
    """A text stream that writes to a descriptor: the present one, unless it goes elsewhere (as in tests).

    A new one is never closed: log handlers that are made meanwhile keep it.
    """
    return stream if writes_to(stream, number) else open(number, "w", buffering=1, closefd=False)


def writes_to(stream: TextIO, number: int) -> bool:
    """Whether a text stream writes to this descriptor."""
    try:
        return stream.fileno() == number
    except (OSError, ValueError):
        return False


def _stop_without(runner_lock: pathlib.Path) -> None:
    """Tells this process to save and leave as soon as nobody holds the lock: the runner is dead."""
    while True:
        with open_lock(runner_lock) as lock:
            if lock.take(shared=True):
                os.kill(os.getpid(), signal.SIGTERM)
                return
        time.sleep(WATCH_SECONDS)
