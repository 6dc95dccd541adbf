"""The folder of a sweep: which trials there are, how far each is, and who is at work on it.

    WORKDIR/sweep.json               the sweep file and all trials
    WORKDIR/trials/NAME/             an ordinary workdir of vitjax.main
    WORKDIR/trials/NAME/trial.json   status; absent before the first attempt
    WORKDIR/trials/NAME/log.txt      everything the trial printed, all attempts
    WORKDIR/workers/                 submitit's folder

Whoever runs a trial holds a lock on `trials/NAME/.lock`. The kernel takes it back when the process dies,
however it dies, so a lock is never left over; and `status` is only believed together with it: a trial that is
"running" with a free lock was interrupted.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping

from vitjax import files
from vitjax.errors import UserError
from vitjax.sweep.trials import Plan, Trial, check_unset_keys, difference

PENDING, RUNNING, DONE, FAILED, PREEMPTED = "pending", "running", "done", "failed", "preempted"


@dataclasses.dataclass(frozen=True)
class State:
    """What trial.json says.

    Attributes:
      status: pending, running, done, failed or preempted (told to stop, saved).
      attempts: how often it was started.
      failures: how many of them failed by themselves.
      error: one line on the last failure.
      started: of the first attempt, UTC, ISO 8601.
      finished: of the end of the last attempt.
      seconds: wall time of all attempts that ended.
      worker: id of the worker that runs it.
    """

    status: str = PENDING
    attempts: int = 0
    failures: int = 0
    error: str | None = None
    started: str | None = None
    finished: str | None = None
    seconds: float = 0.0
    worker: str | None = None


class Folder:
    """The folder of a sweep."""

    def __init__(self, workdir: str | os.PathLike):
        self.path = pathlib.Path(workdir)

    def trial(self, name: str) -> pathlib.Path:
        """The workdir of a trial."""
        return self.path / "trials" / name

    def log(self, name: str) -> pathlib.Path:
        """What a trial printed."""
        return self.trial(name) / "log.txt"

    @property
    def workers(self) -> pathlib.Path:
        """Where submitit keeps its own files."""
        return self.path / "workers"

    def read(self) -> Plan:
        """What sweep.json says.

        Raises:
          UserError: there is none, or it is not one.
        """
        path = self.path / "sweep.json"
        try:
            found = json.loads(path.read_text())
            trials = {name: Trial(name=name, **about) for name, about in found["trials"].items()}
            if any(os.path.basename(name) != name or name.startswith(".") for name in trials):
                raise ValueError("a trial is not named like a folder")
            return Plan(found["sweep"], found["name"], trials)
        except FileNotFoundError:
            raise UserError(
                f"{str(self.path)!r} holds no sweep: python -m vitjax.sweep run --sweep FILE --workdir "
                f"{self.path} starts one."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{str(path)!r} is not the record of a sweep ({error}).") from error

    def settle(self, plan: Plan, extend: bool = False) -> None:
        """Makes the folder one of `plan`, or finds that it is.

        Args:
          plan: what the sweep file says now.
          extend: trials may be added.

        Raises:
          UserError: the folder belongs to other trials, an axis names no key, or locks do not work here.
        """
        files.folder(self.path / "trials")
        self.check_locks()
        with open_lock(self.path / ".lock") as lock:
            lock.wait()
            old = self.read().trials if (self.path / "sweep.json").exists() else {}
            self._refuse_changes(old, plan, extend)
            new = {name: trial for name, trial in plan.trials.items() if name not in old}
            check_unset_keys(new.values())
            record = {
                "sweep": plan.sweep,
                "name": plan.name,
                "trials": {name: trial.to_json() for name, trial in plan.trials.items()},
            }
            text = json.dumps(record, indent=1) + "\n"
            path = self.path / "sweep.json"
            if not path.exists() or path.read_text() != text:
                files.replace(path, text)

    def _refuse_changes(self, old: Mapping[str, Trial], plan: Plan, extend: bool) -> None:
        if not old:
            return
        found = difference(old, plan.trials)
        if extend:
            found.pop("added")
        told = [f"{len(names)} {what} ({_some(names)})" for what, names in found.items() if names]
        if told:
            only_added = found.get("added") and not found["removed"] and not found["changed"]
            remedy = "Give --extend to add them" if only_added else "Set the sweep file back"
            raise UserError(
                f"{str(self.path)!r} holds {len(old)} trials that {plan.sweep} no longer describes: "
                f"{', '.join(told)}. {remedy}, or give another --workdir."
            )

    def check_locks(self) -> None:
        """Refuses a file system without locks: two runners could not tell who has which trial."""
        path = self.path / f".lock-test-{os.getpid()}"
        try:
            with open_lock(path) as one, open_lock(path) as two:
                works = one.take() and not two.take()
        except OSError as error:
            raise files.cannot_write(path, error) from error
        finally:
            path.unlink(missing_ok=True)
        if not works:
            raise UserError(
                f"--workdir {self.path}: this file system has no working locks (flock), by which runners "
                "tell who has which trial. Use a folder on a local disk, or mount with locks."
            )

    def state(self, name: str) -> State:
        """What trial.json says; a fresh state where there is none that can be read."""
        try:
            found = json.loads((self.trial(name) / "trial.json").read_text())
            return State(**{key: found[key] for key in found if key in State.__dataclass_fields__})
        except (OSError, ValueError, TypeError):
            return State()

    def write_state(self, name: str, state: State) -> None:
        """Writes trial.json. Only for who holds the trial's lock."""
        files.replace(self.trial(name) / "trial.json", json.dumps(dataclasses.asdict(state), indent=1) + "\n")

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Holds the lock of a trial inside the block, if it is free; says whether it was."""
        files.folder(self.trial(name))
        with open_lock(self.trial(name) / ".lock") as lock:
            yield lock.take()

    def is_claimed(self, name: str) -> bool:
        """Whether somebody is at work on a trial."""
        path = self.trial(name) / ".lock"
        if not path.exists():
            return False
        with open_lock(path) as lock:
            return not lock.take(shared=True)

    def log_end(self, name: str, lines: int = 12) -> str:
        """The last lines of a trial's log."""
        return "\n".join(tail(self.log(name)).splitlines()[-lines:])


class Lock:
    """An open lock file. Closing it, or the death of the process, gives the lock back."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor

    def take(self, shared: bool = False) -> bool:
        """Takes the lock if it is free, and says whether it was. Those who only ask may share it."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self) -> None:
        """Takes the lock as soon as it is free."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def open_lock(path: pathlib.Path) -> Iterator[Lock]:
    """Opens a lock file, which is made if it is missing and never deleted while somebody may hold it."""
    # Python closes descriptors in programs that it starts, so a child process never keeps the lock.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield Lock(descriptor)
    finally:
        os.close(descriptor)


def tail(path: pathlib.Path, size: int = 8192) -> str:
    """The last `size` bytes of a text file, from a line's beginning on; empty where there is none."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if length <= size else text.partition("\n")[2]


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
