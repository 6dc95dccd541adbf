"""What a sweep measured, setting by setting: trials that differ by their seed alone are one setting."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitjax.sweep.table import Table, column, same

# What an axis of a grid is about, by its name: of `configs/augreg.py`'s arguments, or a key of the config.
ROLES = {
    "model": ("model", "model.name"),
    "augmentation": ("aug",),
    "regularisation": ("reg", "model.dropout", "model.drop_path"),
    "weight decay": ("wd",),
    "mixup": ("mixup",),
}
PRESETS = ("none", "light1", "light2", "medium1", "medium2", "strong1", "strong2")  # weak to strong


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting and what its finished seeds measured.

    Attributes:
      name: of the group.
      axes: value of every swept key.
      scores: (seed, metric) of every finished trial, in the order of the grid.
      rows: the trials' rows of the table.
    """

    name: str
    axes: dict[str, Any]
    scores: list[tuple[Any, float]]
    rows: list[dict[str, Any]]

    @property
    def mean(self) -> float:
        """Mean over seeds, to 12 digits: of equal numbers of right answers no mean is the better one."""
        return float(f"{np.mean([score for _, score in self.scores]):.12g}")

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds (n - 1); NaN for one seed."""
        scores = [score for _, score in self.scores]
        return float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan

    def cost(self, name: str) -> float:
        """Mean of another column over the same trials; NaN where none tells."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return float(np.mean(values)) if values else math.nan


def collect(table: Table, metric: str, value: str = "final") -> list[Setting]:
    """The settings with at least one finished trial whose `metric` is finite, in the order of the grid.

    Args:
      table: of the sweep.
      metric: such as `val/prec@1`.
      value: `final` or `best`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.done:
        score = row.get(f"{value} {metric}")
        if score is not None and math.isfinite(score):
            groups.setdefault(row["group"], []).append(row)
    return [
        Setting(
            name,
            {axis: rows[0][column(axis)] for axis in table.axes},
            [(row["seed"], row[f"{value} {metric}"]) for row in rows],
            rows,
        )
        for name, rows in groups.items()
    ]


def seed_deviation(settings: Sequence[Setting]) -> tuple[float, int]:
    """The standard deviation over seeds, pooled over settings, and its degrees of freedom; (NaN, 0) for none.

    s = sqrt(sum_g (n_g - 1) s_g^2 / sum_g (n_g - 1)): as if the seeds scattered alike in every setting.
    """
    several = [s for s in settings if len(s.scores) > 1]
    freedom = sum(len(s.scores) - 1 for s in several)
    squares = sum((len(s.scores) - 1) * s.deviation**2 for s in several)
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def axis_of(table: Table, role: str) -> str | None:
    """The axis with several values that plays a role of ROLES, by its name; None if there is none."""
    return next((axis for axis in table.varying if axis in ROLES[role]), None)


def tied(table: Table, axis: str) -> list[str]:
    """The varying axes that change with this one, value for value (`zip`), it among them."""
    text = {name: [json.dumps(row[column(name)]) for row in table.rows] for name in table.varying}
    mine = text.get(axis, [])
    return [
        name
        for name, other in text.items()
        if len(set(zip(mine, other, strict=True))) == len(set(mine)) == len(set(other))
    ] or [axis]


def ordered(values: Sequence[Any]) -> list[Any]:
    """Values of an axis in order: presets from weak to strong, numbers up, others as the grid has them."""
    if all(isinstance(value, str) and value in PRESETS for value in values):
        return sorted(values, key=PRESETS.index)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return sorted(values)
    return list(values)


def label(value: Any) -> str:
    """An axis value as text."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def where(settings: Sequence[Setting], axis: str | None, value: Any) -> list[Setting]:
    """The settings in which an axis has this value; all of them for no axis."""
    return [s for s in settings if axis is None or same(s.axes[axis], value)]


def describe(setting: Setting, axes: Sequence[str]) -> str:
    """The values of some axes of a setting: `aug light1, reg 0.1`."""
    return ", ".join(f"{axis} {label(setting.axes[axis])}" for axis in axes)


def best(settings: Sequence[Setting], lower: bool) -> Setting:
    """The setting with the best mean over seeds; of equals the first."""
    choose: Callable[..., Setting] = min if lower else max
    return choose(settings, key=lambda setting: setting.mean)


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats, by rising cost: low costs and high values are good.

    One point beats another if it is at least as good in both and better in one, so equal points are on the
    front together. Points with a NaN are left out.
    """
    known = [i for i, pair in enumerate(zip(costs, values, strict=True)) if not any(map(math.isnan, pair))]
    front: list[int] = []
    for i in sorted(known, key=lambda i: (costs[i], -values[i])):
        last = front[-1] if front else None
        if last is None or values[i] > values[last] or (costs[i], values[i]) == (costs[last], values[last]):
            front.append(i)
    return front
