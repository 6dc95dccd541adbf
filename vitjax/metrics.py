"""What a run measures, written down: `metrics.jsonl`, TensorBoard, and where the wall time went."""

import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vitjax import files

METRICS_FILE = "metrics.jsonl"
HISTOGRAMS_FILE = "histograms.jsonl"
TENSORBOARD_DIR = "tensorboard"

PHASES: tuple[str, ...] = ("start-up", "compile", "data wait", "step", "eval", "checkpoint", "other")


class MetricWriter:
    """Writes named scalars by step to `WORKDIR/metrics.jsonl` and, for TensorBoard, to `WORKDIR/tensorboard`.

    The JSON lines file is the record: one object a step, in ascending order of step, as in
    `{"step": 10, "training_loss": 2.3, "val/prec@1": 0.4}`. The values of a step may come in several `write`
    calls; the line is written when the first value of a later step arrives or at `flush` or `close`.
    Non-finite values are written as `null`, which is valid JSON and which pandas reads back as NaN
    (`read_metrics` does too); TensorBoard gets the value itself.

    Histograms go to `WORKDIR/histograms.jsonl`, which is there as soon as there is one, and to TensorBoard.

    A resumed run passes the step it continues from: values after it are cut from both records, since they are
    about to be measured again. `start_step=0` is a run from scratch and cuts everything.
    """

    def __init__(self, workdir: str | os.PathLike | None, start_step: int = 0, tensorboard: bool = True):
        """Opens the records below `workdir`, which is created if it is missing.

        Args:
          workdir: folder of the run, or None for a writer that writes nothing (every process but the first).
          start_step: step of the restored checkpoint; 0 for a fresh run.
          tensorboard: also write TensorBoard scalars.

        Raises:
          UserError: the folder or files cannot be written.
        """
        self._step: int | None = None
        self._values: dict[str, int | float] = {}
        self._lines = None
        self._histograms = None
        self._tensorboard = None
        if workdir is None:
            return
        self._path = files.folder(workdir) / METRICS_FILE
        try:
            cut_metrics(self._path, start_step)
            cut_metrics(self._path.with_name(HISTOGRAMS_FILE), start_step)
            self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        except OSError as e:
            raise files.cannot_write(self._path, e) from e
        if tensorboard:
            self._tensorboard = _TensorBoard(files.folder(self._path.parent / TENSORBOARD_DIR), start_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds scalars (Python, numpy or fetched jax scalars) to those of `step`.

        A value that is still being computed on a device is waited for here; hand in fetched ones.
        Raises ValueError for a step before the current one: the record is in order of time.
        """
        if self._step is not None and step != self._step:
            if step < self._step:
                raise ValueError(f"metrics of step {step} come after those of step {self._step}")
            self.flush()
        self._step = int(step)
        for name, value in values.items():
            self._values[name] = _scalar(name, value)

    def write_histograms(self, step: int, histograms: Mapping[str, tuple[float, Sequence[float]]]) -> None:
        """Writes histograms `{name: (largest, counts)}`: counts of equal bins of [-largest, largest].

        One line a step, as in `{"step": 10, "binary/latent_weights": {"largest": 0.2, "counts": [4, 0, 3]}}`.
        """
        if not histograms or self._lines is None:
            return
        told = {
            name: {"largest": float(largest), "counts": [int(count) for count in counts]}
            for name, (largest, counts) in histograms.items()
        }
        path = self._path.with_name(HISTOGRAMS_FILE)
        try:
            if self._histograms is None:
                self._histograms = open(path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
            self._histograms.write(json.dumps({"step": int(step)} | told) + "\n")
            self._histograms.flush()
        except OSError as e:
            raise files.cannot_write(path, e) from e
        if self._tensorboard is not None:
            self._tensorboard.write_histograms(int(step), histograms)

    def flush(self) -> None:
        """Ends the step: writes what was collected as one line, so that it survives a kill."""
        if not self._values or self._lines is None:
            self._values = {}
            return
        finite = {name: value if math.isfinite(value) else None for name, value in self._values.items()}
        try:
            self._lines.write(json.dumps({"step": self._step} | finite, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as e:
            raise files.cannot_write(self._path, e) from e
        if self._tensorboard is not None:
            self._tensorboard.write(self._step or 0, self._values)
        self._values = {}

    def close(self) -> None:
        """Writes what is pending and closes both records. May be called twice."""
        self.flush()
        try:
            for lines in (self._lines, self._histograms):
                if lines is not None:
                    lines.close()
        except OSError as e:
            raise files.cannot_write(self._path, e) from e
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._lines = self._histograms = self._tensorboard = None

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


def _scalar(name: str, value: Any) -> int | float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise TypeError(f"metric {name!r} is {type(value).__name__}, not a scalar")
    return float(value) if isinstance(value, float) else int(value)


class _TensorBoard:
    """Scalars as TensorBoard events, written from this thread.

    `tensorboardX.SummaryWriter` hands events to a thread through a bounded queue: when the disk is full the
    thread dies and the training loop then waits for the queue for ever. So the layer below it is used. It
    also keeps `@` in tags, which SummaryWriter replaces.
    """

    FLUSH_SECONDS = 10.0

    def __init__(self, directory: pathlib.Path, start_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._histogram = summary_pb2.HistogramProto
        self._path = directory
        self._flushed = time.monotonic()
        try:
            # File names have a resolution of one second: without the suffix a quick restart overwrites.
            self._writer = EventsWriter(os.fspath(directory / "events"), f".{time.time_ns()}")
            # TensorBoard hides what earlier files hold at this step or later.
            purge_step = start_step + 1 if start_step else 0
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._writer.write_event(self._event(step=purge_step, wall_time=time.time(), session_log=start))
        except OSError as e:
            raise files.cannot_write(directory, e) from e

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def write_histograms(self, step: int, histograms: Mapping[str, tuple[float, Sequence[float]]]) -> None:
        """Sums are those of the middles of the bins."""
        values = []
        for name, (largest, counts) in histograms.items():
            counts = [float(count) for count in counts]
            width = 2 * largest / len(counts)
            ends = [-largest + width * (i + 1) for i in range(len(counts))]
            middles = [end - width / 2 for end in ends]
            moments = [sum(n * x**k for n, x in zip(counts, middles, strict=True)) for k in (0, 1, 2)]
            proto = self._histogram(
                min=-largest, max=largest, num=moments[0], sum=moments[1], sum_squares=moments[2],
                bucket_limit=ends, bucket=counts,
            )  # fmt: skip
            values.append(self._summary.Value(tag=name, histo=proto))
        self._add(step, values)

    def _add(self, step: int, values: list[Any]) -> None:
        summary = self._summary(value=values)
        try:
            self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
            if time.monotonic() - self._flushed > self.FLUSH_SECONDS:  # syncs the disk: not every time
                self._writer.flush()
                self._flushed = time.monotonic()
        except OSError as e:
            raise files.cannot_write(self._path, e) from e

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as e:
            raise files.cannot_write(self._path, e) from e


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on one line of the record, or None for a line that was torn by a kill."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def cut_metrics(path: str | os.PathLike, start_step: int) -> None:
    """Drops the lines after `start_step` from a JSON lines file, at once; for `start_step=0`, all lines.

    Unreadable lines go too: the last one may be torn where an earlier run was killed. A missing file is fine.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        row = _parse_line(line)
        if row is None and line.strip() and number < len(lines):
            logging.warning("%s: line %d is not a JSON object with a step; dropped", path, number)
        if row is not None and 0 < start_step >= row["step"]:
            kept.append(line + b"\n")
    files.replace(path, b"".join(kept))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads back what a run has written so far: one dict a step, ascending, with NaN for non-finite values.

    Safe to call while the run writes: a torn line is passed over. A missing file gives an empty list.
    """
    return _read(pathlib.Path(workdir) / METRICS_FILE)


def read_histograms(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads back a run's histograms, `{"step": 10, NAME: {"largest":, "counts":}}`, as `read_metrics`."""
    return _read(pathlib.Path(workdir) / HISTOGRAMS_FILE)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        row = _parse_line(line)
        if row is not None:
            values = {name: math.nan if value is None else value for name, value in row.items()}
            rows.setdefault(row["step"], {}).update(values)
    return [rows[step] for step in sorted(rows)]


class WallTime:
    """Keeps the split of a run's wall time by phase.

    At every moment exactly one phase is charged: the innermost open `with wall.phase(name)`, or "other"
    outside of all. So the seconds of `split` always add up to `total`. For use from one thread; a phase costs
    about two microseconds.
    """

    def __init__(
        self,
        previous: Mapping[str, float] | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
          previous: seconds by phase (what `split` returned) of the run that this one resumes. Phases of
            another name count as "other".
          clock: seconds from an arbitrary origin; given by tests.
        """
        self._clock = clock
        self._seconds = dict.fromkeys(PHASES, 0.0)
        for name, seconds in (previous or {}).items():
            self._seconds[name if name in self._seconds else "other"] += float(seconds)
        self._open = ["other"]
        self._since = clock()

    def _charge(self) -> None:
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the time inside the block, less that of nested phases, to `name`, one of PHASES."""
        if name not in self._seconds:
            raise ValueError(f"unknown phase {name!r}; valid are {', '.join(PHASES)}")
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def charge_to(self, name: str) -> None:
        """Charges the innermost open phase to another one after all, from its last nested phase on if any."""
        self._open[-1] = name

    def split(self) -> dict[str, float]:
        """Seconds by phase up to now, in the order of PHASES."""
        self._charge()
        return dict(self._seconds)

    @property
    def total(self) -> float:
        """Seconds of all phases together."""
        return sum(self.split().values())

    @property
    def goodput(self) -> float:
        """Share of the total time spent in training steps, in [0, 1]."""
        split = self.split()
        return split["step"] / (sum(split.values()) or 1.0)

    def summary(self) -> str:
        """One line, largest phases first: `wall 0:10:05, goodput 91.2% (step 91.2%, compile 4.0%, ...)`."""
        split = self.split()
        total = sum(split.values()) or 1.0
        parts = sorted(((s / total, name) for name, s in split.items() if s / total >= 0.0005), reverse=True)
        shares = ", ".join(f"{name} {share:.1%}" for share, name in parts)
        return f"wall {hms(total)}, goodput {split['step'] / total:.1%} ({shares})"


def hms(seconds: float) -> str:
    """`0:12:10` for 730 seconds; hours go on counting."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
