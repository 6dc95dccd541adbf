"""`run`: starts workers, watches them, replaces those that die, and says what came of each trial."""

import ast
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

from vitjax import files
from vitjax.errors import UserError, nearest
from vitjax.metrics import hms
from vitjax.sweep import devices, status
from vitjax.sweep.folder import DONE, FAILED, PREEMPTED, RUNNING, Folder, open_lock
from vitjax.sweep.trials import Plan
from vitjax.sweep.worker import Worker, is_open, note_death, run_here, writes_to

# Minutes after which submitit gives up on a local worker: never.
FOR_EVER = 60 * 24 * 365 * 10
# What a Slurm job gets unless --slurm says otherwise; after `time` minutes it saves and is queued again.
SLURM_DEFAULTS = {"time": 240, "signal_delay_s": 120, "additional_parameters": {"requeue": True}}
SLURM_REQUEUES = 1000
# A worker whose process dies before it has taken a trial will die again: so often it is replaced.
EARLY_DEATHS = 3
POLL_SECONDS = 0.5


def run(
    plan: Plan,
    folder: Folder,
    *,
    parallel: int = 1,
    retries: int = 1,
    executor: str = "local",
    share: tuple[int, int] | None = None,
    slurm: Sequence[str] = (),
    detach: bool = False,
) -> int:
    """Runs all trials of a sweep that are not finished; `folder` has been settled for `plan`.

    Args:
      plan: the trials.
      folder: of the sweep.
      parallel: number of workers.
      retries: how often a failed trial is tried again.
      executor: local and slurm go through submitit; inline trains in this process.
      share: (i, n): the i-th of n shares of the trials, counted from 0, in this process.
      slurm: `key=value` for Slurm.
      detach: with slurm: submit, and do not wait.

    Returns: 0 if all trials (of the share) are done, 3 if some failed for good, 128 + signal if told to stop.
    """
    names = list(plan.trials)
    if share is not None:
        names = names[share[0] :: share[1]]
    show = Display(folder, names, retries)
    if any(is_unfinished(row, retries) for row in show.update()):
        show.print(status.summary(show.update(), retries))
    if executor == "inline" or share is not None:
        code = run_inline(plan, folder, names, retries, show, wait=share is None)
    elif executor == "slurm":
        code = run_on_slurm(plan, folder, parallel, retries, slurm, detach, show)
    else:
        code = run_local(plan, folder, parallel, retries, show)
    if detach:
        return code
    found = status.rows(folder, names)
    show.print(status.summary(found, retries))
    failed = [row for row in found if row.status == FAILED and not is_open(row.state, retries)]
    for row in failed:
        show.print(f"\n{row.name} failed {row.state.failures} times: {row.state.error}")
        show.print(f"the end of {folder.log(row.name)}:\n{folder.log_end(row.name)}")
    if code:
        show.print("stopped: the same command goes on from there")
    elif share is None:
        show.print(f"table and page: python -m vitjax.sweep report --workdir {folder.path}")
    return code or (3 if failed else 0)


def run_inline(
    plan: Plan, folder: Folder, names: list[str], retries: int, show: "Display", wait: bool
) -> int:
    """Trains in this process. With `wait`, what others have is waited for, or taken over if these die."""
    while True:
        with show.in_background():
            code = run_here(folder, plan, names, retries)
        unfinished = [row for row in show.update() if is_unfinished(row, retries)]
        if code or not wait or not unfinished:
            return code or 0
        time.sleep(1)


def run_local(plan: Plan, folder: Folder, parallel: int, retries: int, show: "Display") -> int:
    """Starts workers on this machine through submitit and waits for them."""
    import submitit

    # Local jobs are called by their process number, which comes again: every run has a folder of its own.
    home = files.folder(folder.workers / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    executor = submitit.LocalExecutor(folder=home)
    executor.update_parameters(timeout_min=FOR_EVER)
    shares = devices.shares(parallel)
    jobs: dict[int, Any] = {}
    early_deaths = 0
    with alive(home) as runner_lock, Told() as told:
        while True:
            for index, job in list(jobs.items()):
                if job.done():
                    del jobs[index]
                    if not ended_well(job) and not told.code:
                        log = pathlib.Path(job.paths.stderr)
                        early_deaths += not note_death(folder, plan, job.job_id, log)
                        if early_deaths > EARLY_DEATHS:
                            raise UserError(f"workers die before they take a trial: see the end of {log}.")
            found = show.update(workers=parallel)
            if told.code:
                for job in jobs.values():
                    told.pass_on(int(job.job_id))
                if not jobs or told.twice:
                    return told.code
            elif not jobs and not any(is_unfinished(row, retries) for row in found):
                return 0
            else:
                for index in [i for i in range(parallel) if i not in jobs][: _wanted(found, jobs, retries)]:
                    jobs[index] = submit(executor, Worker(folder, plan, retries, shares[index], runner_lock))
            time.sleep(POLL_SECONDS)


def _wanted(found: list[status.Row], jobs: dict[int, Any], retries: int) -> int:
    """How many more workers have something to do: trials that nobody has, less workers that have none yet."""
    ids = {job.job_id for job in jobs.values()}
    busy = sum(row.status == RUNNING and row.state.worker in ids for row in found)
    waiting = sum(row.status != RUNNING and is_unfinished(row, retries) for row in found)
    return max(0, waiting - (len(jobs) - busy))


def is_unfinished(row: status.Row, retries: int) -> bool:
    """Whether a trial is running or still to be run."""
    return row.status == RUNNING or is_open(row.state, retries)


def submit(executor: Any, worker: Worker) -> Any:
    """Starts a worker on this machine, out of reach of the terminal's Ctrl-C: this process passes it on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(worker)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_on_slurm(
    plan: Plan,
    folder: Folder,
    parallel: int,
    retries: int,
    options: Sequence[str],
    detach: bool,
    show: "Display",
) -> int:
    """Submits an array of workers to Slurm; unless detached, shows how they fare until all is done."""
    import submitit

    try:
        executor = submitit.SlurmExecutor(files.folder(folder.workers), max_num_timeout=SLURM_REQUEUES)
    except RuntimeError as error:
        raise UserError(f"--executor slurm: {error}") from error
    parameters = {**SLURM_DEFAULTS, "job_name": plan.name.replace(" ", "_"), **slurm_options(options)}
    try:
        executor.update_parameters(**parameters)
    except ValueError as error:
        raise UserError(f"--slurm: {error}") from error
    worker = Worker(folder, plan, retries, devices.Share())
    with executor.batch():
        jobs = [executor.submit(worker) for _ in range(parallel)]
    first = jobs[0].job_id.partition("_")[0]
    show.print(
        f"submitted job {first}, {parallel} workers; scancel {first} ends them, Ctrl-C only this watching"
    )
    if detach:
        return 0
    with Told() as told:
        while not told.code:
            if not any(is_unfinished(row, retries) for row in show.update(workers=parallel)):
                return 0
            time.sleep(10 * POLL_SECONDS)
    return told.code


def slurm_options(options: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` words: `time=60`, `gpus_per_node=1`, `partition=long`."""
    from submitit.slurm.slurm import _get_default_parameters

    found = {}
    for word in options:
        key, equals, text = word.partition("=")
        valid = _get_default_parameters()
        if not equals or key not in valid:
            raise UserError(f"--slurm {word}: write key=value with a key of submitit's.{nearest(key, valid)}")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def ended_well(job: Any) -> bool:
    """Whether a worker came to its end, rather than being killed: then submitit has written its result."""
    path = pathlib.Path(job.paths.result_pickle)
    return path.exists()


@contextlib.contextmanager
def alive(home: pathlib.Path) -> Iterator[pathlib.Path]:
    """Holds a lock by which workers see that this runner lives; yields its path."""
    path = home / "runner.lock"
    with open_lock(path) as lock:
        lock.wait()
        yield path
    path.unlink(missing_ok=True)


class Told:
    """Notes SIGINT and SIGTERM, to be passed on to workers."""

    def __init__(self):
        self.code = 0  # what to exit with: 128 and the signal, as shells say
        self.twice = False
        self._old: dict[int, Any] = {}

    def pass_on(self, pid: int) -> None:
        """Tells submitit's controller of a worker, which passes it on to the worker."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.twice = bool(self.code)
        self.code = self.code or 128 + number
        if not self.twice:  # not print: a handler may come in the middle of one
            os.write(2, b"\nstopping: trials finish their step and save; again leaves at once\n")

    def __enter__(self) -> "Told":
        self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Display:
    """Says what came of each attempt, and on a terminal keeps a live line below."""

    def __init__(self, folder: Folder, names: Sequence[str], retries: int):
        self._folder, self._names, self._retries = folder, names, retries
        self._stream = _stdout()
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()
        self._rows: dict[str, status.Row] = {}

    def update(self, workers: int = 1) -> list[status.Row]:
        """Looks at all trials, prints those whose attempt has ended since, and returns all."""
        with self._lock:
            # A trial that is done stays so.
            look = [n for n in self._names if n not in self._rows or self._rows[n].status != DONE]
            fresh = {row.name: row for row in status.rows(self._folder, look)}
            ended = [row for name, row in fresh.items() if _has_ended(self._rows.get(name), row)]
            self._rows |= fresh
            found = [self._rows[name] for name in self._names]
            for row in ended:
                self._write(self._ended(row))
            if self._live:
                self._draw(found, workers)
            return found

    def print(self, text: str) -> None:
        """Prints above the live line."""
        with self._lock:
            self._write(text)

    @contextlib.contextmanager
    def in_background(self) -> Iterator[None]:
        """Updates while the block keeps the main thread busy."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(2 * POLL_SECONDS):
                self.update()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _ended(self, row: status.Row) -> str:
        if row.status == FAILED:
            again = "will be tried again" if is_open(row.state, self._retries) else "given up"
            return f"{row.name} failed ({again}): {row.state.error}"
        measured = status.best(self._folder, row.name)
        about = f" {measured[0]} {measured[1]:.4g}" if measured else ""
        return f"{row.name} {row.status}{about} ({hms(row.state.seconds)})"

    def _draw(self, found: list[status.Row], workers: int) -> None:
        running = [
            f"{row.name} {row.step}/{row.total}" for row in found if row.status == RUNNING and row.total
        ]
        text = "; ".join([status.summary(found, self._retries, workers), *running])
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{text[:width]}\x1b[K")
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
        self._stream.flush()


def _has_ended(before: status.Row | None, after: status.Row) -> bool:
    ended = after.status in (DONE, FAILED, PREEMPTED)
    return ended and before is not None and before.state != after.state


def _stdout() -> TextIO:
    """Standard output, on a descriptor of its own: that of a trial in this process goes to its log."""
    return os.fdopen(os.dup(1), "w") if writes_to(sys.stdout, 1) else sys.stdout
