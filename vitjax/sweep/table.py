"""One tidy table of a sweep: a row a trial, a column a swept key or a measurement."""

import csv
import dataclasses
import datetime
import io
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitjax import files
from vitjax.errors import UserError, nearest
from vitjax.metrics import read_metrics
from vitjax.run_info import read_run_info

CSV_FILE, PARQUET_FILE = "table.csv", "table.parquet"
SWEEP_FILE, TRIALS, TRIAL_FILE = "sweep.json", "trials", "trial.json"
STATUSES = ("done", "running", "preempted", "failed", "pending", "unknown")

_FIRST = ("name", "group", "status", "attempts")
_MEASURED = (
    "training_loss",
    "steps",
    "total_steps",
    "images_seen",
    "images_per_second",
    "device_hours",
    "num_params",
    "gmacs_per_image",
    "training_flops",
    "devices",
    "git_revision",
    "git_dirty",
    "started",
    "error",
)
_NOT_EVALUATED = ("img/", "data/", "binary/")  # measured by the loop, though the name has a slash


@dataclasses.dataclass(frozen=True)
class Table:
    """All trials of a sweep, in the order of the grid.

    Attributes:
      name: of the sweep.
      axes: {swept key: its values, in the order of the grid}; the seed is not one of them.
      columns: names of all columns, in order.
      rows: one dict a trial with every column; None where a trial does not say.
      metrics: names of the evaluation metrics, each with columns `final NAME` and `best NAME`.
      best_metric: the metric by which the trials keep their best checkpoint, if they name one.
    """

    name: str
    axes: dict[str, list[Any]]
    columns: list[str]
    rows: list[dict[str, Any]]
    metrics: list[str]
    best_metric: str | None

    @property
    def done(self) -> list[dict[str, Any]]:
        """Rows of the finished trials: the others' last numbers are not results."""
        return [row for row in self.rows if row["status"] == "done"]

    @property
    def varying(self) -> list[str]:
        """Swept keys with more than one value."""
        return [axis for axis, values in self.axes.items() if len(values) > 1]


def column(axis: str) -> str:
    """The column of a swept key: its name, with `swept ` in front where a measurement is called so."""
    return f"swept {axis}" if axis in (*_FIRST, *_MEASURED, "seed") else axis


def read_table(workdir: str | os.PathLike) -> Table:
    """Reads what a sweep has so far; safe while it runs.

    Columns: `name`, `group` (the name without the seed), `status` (one of STATUSES; pending where nothing
    was started, unknown where `trial.json` cannot be read), `attempts`, every swept key, `seed`,
    `final METRIC` and `best METRIC` of every evaluation metric (the last value, and the best over the run's
    evaluations, lowest for losses), `training_loss` (last), `steps` done, `total_steps`, `images_seen`,
    `images_per_second` (median of the logged ones, all devices of the trial together), `device_hours` (wall
    time times devices), `num_params`, `gmacs_per_image` (forward pass, 10^9), `training_flops` (3 x 2 x
    multiply-accumulates x images seen; a float, since studies go beyond 2^63), `devices`, `git_revision`,
    `git_dirty`, `started` (UTC), `error` (one line). Nothing is rounded.

    Raises:
      UserError: there is no readable `sweep.json` in the folder.
    """
    workdir = pathlib.Path(workdir)
    sweep = _read_sweep(workdir)
    trials: dict[str, Mapping] = sweep["trials"]
    axes = _axes(trials.values())
    runs = [_Trial(workdir / TRIALS / name) for name in trials]
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    rows = []
    for (name, trial), run in zip(trials.items(), runs, strict=True):
        row = {"name": name, "group": trial.get("group", name), **run.state()}
        row |= {column(axis): trial.get("axes", {}).get(axis) for axis in axes}
        row["seed"] = trial.get("seed")
        for metric in metrics:
            row[f"final {metric}"], row[f"best {metric}"] = run.final_and_best(metric)
        rows.append(row | run.measured())
    evaluated = [f"{kind} {metric}" for metric in metrics for kind in ("final", "best")]
    return Table(
        name=str(sweep.get("name") or workdir.resolve().name),
        axes=axes,
        columns=[*_FIRST, *map(column, axes), "seed", *evaluated, *_MEASURED],
        rows=rows,
        metrics=metrics,
        best_metric=next((run.best_metric for run in runs if run.best_metric in metrics), None),
    )


def _axes(trials: Sequence[Mapping] | Any) -> dict[str, list[Any]]:
    """Values by swept key, each in the order of its first appearance."""
    axes: dict[str, list[Any]] = {}
    for trial in trials:
        for axis, value in trial.get("axes", {}).items():
            seen = axes.setdefault(axis, [])
            if not any(same(value, other) for other in seen):
                seen.append(value)
    axes.pop("seed", None)
    return axes


def same(a: Any, b: Any) -> bool:
    """Whether two values of an axis are one: 1 is 1.0, but True is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss or an error by its name: `val/loss`, `val/ece`, `test/error`."""
    return bool(re.search(r"(loss|error|ece|nll|perplexity)$", metric))


def is_share(metric: str) -> bool:
    """Whether a metric is a share in [0, 1] by its name, shown as percent: `val/prec@1`, `a/cifar_10shot`."""
    last = metric.split("/")[-1]
    return last.startswith(("prec@", "acc")) or "shot" in last


def choose_metric(table: Table, wanted: str | None) -> str | None:
    """The metric a page is about: `wanted`, the trials' best_metric, or the likeliest; None if there is none.

    Raises:
      UserError: no trial has measured `wanted`.
    """
    if wanted is None:
        likely = sorted(table.metrics, key=lambda name: (not is_share(name), lower_is_better(name)))
        return table.best_metric or (likely[0] if likely else None)
    if wanted not in table.metrics:
        known = ", ".join(table.metrics) or "none so far"
        hint = nearest(wanted, table.metrics)
        raise UserError(f"--metric {wanted}: no trial has measured it.{hint} There are: {known}.")
    return wanted


class _Trial:
    """What the folder of one trial holds; any file of it may be missing or torn."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.rows = read_metrics(folder)
        self.info = read_run_info(folder)
        self.config = _read_object(folder / "config.json") or {}
        evals = self.config.get("evals")
        sections = tuple(f"{name}/" for name in evals) if isinstance(evals, dict) else ()
        names = dict.fromkeys(name for row in self.rows for name in row)
        if sections:
            self.metrics = [name for name in names if name.startswith(sections)]
        else:
            self.metrics = [name for name in names if "/" in name and not name.startswith(_NOT_EVALUATED)]

    @property
    def best_metric(self) -> str | None:
        """The metric that the config names, without `max:` or `min:` in front."""
        best = self.config.get("best_metric")
        return re.sub("^(max|min):", "", best) if isinstance(best, str) else None

    def state(self) -> dict[str, Any]:
        """Status, attempts and error."""
        path = self.folder / TRIAL_FILE
        trial = _read_object(path)
        if trial is None:
            return {"status": "unknown" if path.exists() else "pending", "attempts": None, "error": None}
        status, error = trial.get("status"), trial.get("error")
        return {
            "status": status if status in STATUSES else "unknown",
            "attempts": _whole(trial.get("attempts")),
            "error": str(error) if error else None,
        }

    def final_and_best(self, metric: str) -> tuple[float | None, float | None]:
        """The last value and the best finite one."""
        values = self._series(metric)
        if not values:
            return None, None
        best = min if lower_is_better(metric) else max
        return values[-1], best(filter(math.isfinite, values), default=math.nan)

    def measured(self) -> dict[str, Any]:
        """The columns that run.json and metrics.jsonl tell."""
        info, git = self.info, self.info.get("git") or {}
        steps = self.rows[-1]["step"] if self.rows else None
        batch, seen = _whole(info.get("batch_size")), self._last("examples_seen")
        images = round(seen) if seen is not None else steps * batch if steps and batch else None
        macs = _whole(info.get("macs_per_image"))
        params = _whole(info.get("num_params")) or self._last("num_params")
        rates = [rate for rate in self._series("img/sec") if math.isfinite(rate)]
        devices = [device for device in info.get("devices") or () if isinstance(device, dict)]
        return {
            "training_loss": self._last("training_loss"),
            "steps": steps,
            "total_steps": _whole(info.get("total_steps")),
            "images_seen": images,
            "images_per_second": float(np.median(rates)) if rates else None,
            "device_hours": self._device_hours(devices),
            "num_params": None if params is None else int(params),
            "gmacs_per_image": None if macs is None else macs / 1e9,
            "training_flops": None if macs is None or images is None else 6.0 * macs * images,
            "devices": ", ".join(f"{d.get('count')} {d.get('kind')}" for d in devices) or None,
            "git_revision": git.get("revision"),
            "git_dirty": git.get("dirty"),
            "started": _time(info.get("started")),
        }

    def _device_hours(self, devices: list[dict]) -> float | None:
        """Both records are asked: run.json is written at checkpoints, the metrics at logging steps."""
        count, wall = sum(_whole(d.get("count")) or 0 for d in devices), self.info.get("wall_time")
        told = [sum(wall.values()) * count / 3600] if isinstance(wall, dict) and count else []
        logged = self._last("core_hours")
        return max(told + ([logged] if logged is not None else []), default=None)

    def _series(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows if isinstance(row.get(name), int | float)]

    def _last(self, name: str) -> float | None:
        values = self._series(name)
        return values[-1] if values else None


def _read_sweep(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / SWEEP_FILE
    sweep = _read_object(path) or {}
    trials = sweep.get("trials")
    if not isinstance(trials, dict) or not all(isinstance(trial, dict) for trial in trials.values()):
        what = "is not the record of a sweep" if path.exists() else "is not there"
        raise UserError(
            f"--workdir {os.fspath(workdir)}: {SWEEP_FILE} {what}. Name the folder that "
            "`python -m vitjax.sweep run` was given."
        )
    return sweep


def _read_object(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime.datetime | None:
    try:
        time = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return time.replace(tzinfo=time.tzinfo or datetime.UTC).astimezone(datetime.UTC)


# Writing


def write_table(workdir: str | os.PathLike, table: Table) -> list[pathlib.Path]:
    """Writes WORKDIR/table.csv and WORKDIR/table.parquet, and returns their paths.

    A column has one type: bool, int64, float64, string or (`started`) a time in UTC. A swept key whose values
    are of several types, or lists, is a string, by JSON where it is none yet. None is null in Parquet and
    empty in CSV; NaN stays NaN. CSV has numbers with all their digits.

    Raises:
      UserError: the files cannot be written.
    """
    workdir = pathlib.Path(workdir)
    columns = {name: _uniform([row[name] for row in table.rows]) for name in table.columns}
    files.replace(workdir / CSV_FILE, _csv(columns))
    files.replace(workdir / PARQUET_FILE, _parquet(columns))
    return [workdir / CSV_FILE, workdir / PARQUET_FILE]


def _uniform(values: Sequence[Any]) -> list[Any]:
    """The values of a column as one type."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2 and kinds <= {bool, int, float, str, datetime.datetime}:
        return list(values)
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def _csv(columns: Mapping[str, list[Any]]) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        return value.isoformat() if isinstance(value, datetime.datetime) else str(value)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([map(cell, row) for row in zip(*columns.values(), strict=True)])
    return text.getvalue()


def _parquet(columns: Mapping[str, list[Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        bool: pyarrow.bool_(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        str: pyarrow.string(),
        datetime.datetime: pyarrow.timestamp("s", tz="UTC"),
    }
    arrays = {}
    for name, values in columns.items():
        kind = next((type(value) for value in values if value is not None), _EMPTY.get(name, str))
        arrays[name] = pyarrow.array(values, kinds[kind])
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


# Types of columns that nobody has filled in yet: they do not change when the first trial does.
_EMPTY: dict[str, type] = {
    **dict.fromkeys(("attempts", "seed", "steps", "total_steps", "images_seen", "num_params"), int),
    **dict.fromkeys(("training_loss", "images_per_second", "device_hours"), float),
    **dict.fromkeys(("gmacs_per_image", "training_flops"), float),
    "git_dirty": bool,
    "started": datetime.datetime,
}
