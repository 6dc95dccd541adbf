"""How far a sweep is: each trial's state, step and best metric, as a table and as one line."""

import collections
import dataclasses
import datetime
import json
import math
import re
import time
from collections.abc import Iterable

from vitjax.metrics import hms, read_metrics
from vitjax.sweep.folder import DONE, FAILED, PENDING, PREEMPTED, RUNNING, Folder, State, tail
from vitjax.sweep.trials import Plan
from vitjax.sweep.worker import is_open

INTERRUPTED = "interrupted"  # "running", but nobody holds the lock: the process died


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial in the table: its state, the status as it really is, and how far it is."""

    name: str
    state: State
    status: str
    step: int | None
    total: int | None


def rows(folder: Folder, names: Iterable[str]) -> list[Row]:
    """The trials of these names as they are at this moment."""
    return [_row(folder, name) for name in names]


def _row(folder: Folder, name: str) -> Row:
    state = folder.state(name)
    status = state.status
    if status == RUNNING and not folder.is_claimed(name):
        state = folder.state(name)  # it may have ended in between
        status = INTERRUPTED if state.status == RUNNING else state.status
    step, total = progress(folder, name) if status != PENDING else (None, None)
    return Row(name, state, status, step, total)


def progress(folder: Folder, name: str) -> tuple[int | None, int | None]:
    """Steps done and steps in all, by the last line of the log that tells; (None, None) before the first."""
    found = re.findall(r"^step (\d+)/(\d+) ", tail(folder.log(name)), flags=re.MULTILINE)
    return (int(found[-1][0]), int(found[-1][1])) if found else (None, None)


def best(folder: Folder, name: str) -> tuple[str, float] | None:
    """Name and best value so far of the config's `best_metric`; without one, of the training loss."""
    workdir = folder.trial(name)
    try:
        wanted = json.loads((workdir / "config.json").read_text()).get("best_metric")
    except (OSError, ValueError, AttributeError):
        return None
    metric = re.sub("^(max|min):", "", wanted or "min:training_loss")
    better = min if (wanted or "min:").startswith("min:") else max
    values = [row[metric] for row in read_metrics(workdir) if math.isfinite(row.get(metric, math.nan))]
    return (metric, better(values)) if values else None


def counts(found: Iterable[Row], retries: int) -> dict[str, int]:
    """Numbers of trials: done, running, failed for good, and to go (running ones not among them)."""
    number = collections.Counter()
    for row in found:
        number["all"] += 1
        if row.status == DONE:
            number["done"] += 1
        elif row.status == RUNNING:
            number["running"] += 1
        elif is_open(row.state, retries):
            number["to go"] += 1
        else:
            number["failed"] += 1
    return {key: number[key] for key in ("all", "done", "running", "failed", "to go")}


def summary(found: list[Row], retries: int, workers: int | None = None) -> str:
    """One line: `5/12 done, 2 running, 1 failed, eta 0:12:00`."""
    number = counts(found, retries)
    text = f"{number['done']}/{number['all']} done"
    text += "".join(f", {number[key]} {key}" for key in ("running", "failed", "to go") if number[key])
    eta = remaining_seconds(found, retries, workers or max(1, number["running"]))
    return text + (f", eta {hms(eta)}" if math.isfinite(eta) else "")


def remaining_seconds(found: list[Row], retries: int, workers: int) -> float:
    """Seconds to go if a trial takes the mean time of the finished ones; NaN before one has finished."""
    took = [row.state.seconds for row in found if row.status == DONE]
    left = sum(
        1 - (row.step or 0) / (row.total or 1)
        for row in found
        if row.status == RUNNING or (row.status != DONE and is_open(row.state, retries))
    )
    return sum(took) / len(took) * left / workers if took and left else math.nan


def table(folder: Folder, plan: Plan, retries: int = 0) -> str:
    """The table of `python -m vitjax.sweep status`: a line a trial and the summary."""
    found = rows(folder, plan.trials)
    header = ("trial", "status", "step", "best", "attempts", "age", "")
    lines = [header, *(_cells(folder, row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in [*text, summary(found, retries)])


def _cells(folder: Folder, row: Row) -> tuple[str, ...]:
    measured = best(folder, row.name) if row.status != PENDING else None
    since = row.state.finished or row.state.started
    return (
        row.name,
        row.status,
        "" if row.step is None else f"{row.step}/{row.total}",
        "" if measured is None else f"{measured[0]} {measured[1]:.4g}",
        str(row.state.attempts),
        "" if since is None else hms(_age(since)),
        row.state.error or "" if row.status in (FAILED, PREEMPTED, INTERRUPTED) else "",
    )


def _age(moment: str) -> float:
    return max(0.0, time.time() - datetime.datetime.fromisoformat(moment).timestamp())
