"""What a sweep file is written with: axes, and the ways to combine them into points.

    from vitjax.sweep import grid

    def get_sweep(arg=None):
        return grid.Sweep(
            config="configs/augreg.py:data=digits",
            points=grid.product(
                grid.args(aug=("none", "light1"), reg=(0.0, 0.1)),  # arguments of the config file
                grid.keys({"optax.b2": (0.95, 0.999)}),  # keys of the config
                where=lambda aug, reg, **_: aug != "none" or reg == 0.0,
            ),
            seeds=(0, 1),
        )

A sweep file is read where nothing heavy is loaded, so this module imports the standard library only.
"""

import builtins
import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ARGS, KEYS = "args", "keys"


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A distribution for `sample`: uniform in [low, high], or uniform in the logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, rng: random.Random) -> float:
        """One value, rounded to three significant digits so that it can be read in a name."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = rng.uniform(low, high)
        return float(f"{math.exp(value) if self.log else value:.3g}")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
      kind: `args`, an argument of the config file, or `keys`, a dotted key of the config.
      name: `aug`, or `optax.b2`.
      values: the values, or a distribution to draw them from.
    """

    kind: str
    name: str
    values: tuple | Uniform


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting: values of arguments and of config keys."""

    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> dict[str, Any]:
        """All values by name, arguments first."""
        return {**self.args, **self.keys}

    def __add__(self, other: "Point") -> "Point":
        twice = [name for name in other.axes if name in self.axes]
        if twice:
            raise ValueError(f"axis {twice[0]!r} is given twice: every axis may vary in one place only.")
        return Point({**self.args, **other.args}, {**self.keys, **other.keys})


Axes = tuple[Axis, ...]
Points = Sequence[Point] | Axes


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `get_sweep` returns.

    Attributes:
      config: `FILE.py[:ARG]` that every trial starts from; the arguments of a point are added to ARG. FILE is
        looked for where the command is typed, then above the sweep file.
      points: settings, or axes of which all combinations are meant.
      seeds: every point is run with each of them.
      overrides: config keys that are the same in all trials.
      where: filter over points, called with their values by name; False leaves a point out.
      name: title of the sweep; the name of its file unless given.
    """

    config: str
    points: Points = ()
    seeds: Sequence[int] = (0,)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: Callable[..., bool] | None = None
    name: str | None = None


def args(**values: Any) -> Axes:
    """Axes over arguments of the config file: `args(model=("vit_s16", "vit_b16"), reg=(0.0, 0.1))`."""
    return _axes(ARGS, values)


def keys(values: Mapping[str, Any]) -> Axes:
    """Axes over keys of the config: `keys({"optax.b2": (0.95, 0.999), "lr": (1e-3, 3e-3)})`."""
    return _axes(KEYS, values)


def uniform(low: float, high: float) -> Uniform:
    """For `sample`: a number drawn uniformly from [low, high]."""
    return _distribution(low, high, log=False)


def log_uniform(low: float, high: float) -> Uniform:
    """For `sample`: a number from [low, high] whose logarithm is uniform, as suits learning rates."""
    return _distribution(low, high, log=True)


def product(*parts: Points, where: Callable[..., bool] | None = None) -> tuple[Point, ...]:
    """All combinations; the last part varies fastest.

    Raises ValueError for an axis that two parts have, or without values.
    """
    choices = [points(part) for part in parts]
    return select((sum(chosen, Point()) for chosen in itertools.product(*choices)), where)


def zip(*parts: Points, where: Callable[..., bool] | None = None) -> tuple[Point, ...]:
    """First with first, second with second, and so on; within one `args` or `keys`, too.

    `zip(args(model=("vit_s16", "vit_b16"), aug=("light1", "medium1")))` is two points.
    Raises ValueError where the lengths differ.
    """
    columns: list[Sequence[Point]] = []
    for part in parts:
        columns += [points((axis,)) for axis in _axes_of(part)] or [points(part)]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{_names(column)}: {len(column)}" for column in columns)
        raise ValueError(f"zip needs as many values of each, but there are {lengths}.")
    return select((sum(row, Point()) for row in builtins.zip(*columns, strict=True)), where)


def sample(
    n: int, *parts: Points, seed: int = 0, where: Callable[..., bool] | None = None
) -> tuple[Point, ...]:
    """Returns `n` different points drawn at random; a larger `n` keeps those of a smaller one.

    Args:
      n: how many.
      *parts: axes with values to choose from or with `uniform` or `log_uniform`, or points to choose from.
      seed: of the draws.
      where: filter; what it leaves out is drawn again.

    Raises:
      ValueError: there are not so many different points.
    """
    rng, found = random.Random(seed), []
    choices = [_axes_of(part) or points(part) for part in parts]
    for _ in range(1000 * n):
        if len(found) == n:
            return tuple(found)
        point = sum((_draw(choice, rng) for choice in choices), Point())
        if point not in found and select([point], where):
            found.append(point)
    if len(found) == n:
        return tuple(found)
    raise ValueError(f"sample({n}, ...) found {len(found)} different points only: ask for fewer.")


def points(part: Points) -> tuple[Point, ...]:
    """The points of a part: points as they are, axes as all their combinations."""
    axes = _axes_of(part)
    if not axes:
        odd = [item for item in part if not isinstance(item, Point)]
        if odd:
            raise ValueError(f"{odd[0]!r} is neither an axis nor a point: write args(...) or keys(...).")
        return tuple(item for item in part if isinstance(item, Point))
    columns: list[tuple] = []
    for axis in axes:
        if isinstance(axis.values, Uniform):
            raise ValueError(f"axis {axis.name!r} is a distribution: only sample(n, ...) can draw from it.")
        columns.append(axis.values)
    return tuple(_point(axes, values) for values in itertools.product(*columns))


def select(candidates: Iterable[Point], where: Callable[..., bool] | None) -> tuple[Point, ...]:
    """The points that a filter lets pass."""
    return tuple(point for point in candidates if where is None or where(**point.axes))


def _axes(kind: str, values: Mapping[str, Any]) -> Axes:
    return tuple(Axis(kind, name, _values(name, value)) for name, value in values.items())


def _values(name: str, values: Any) -> tuple | Uniform:
    if isinstance(values, Uniform):
        return values
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"axis {name!r} = {values!r} must be a tuple of values: ({values!r},) for one.")
    values = tuple(values)
    if not values:
        raise ValueError(f"axis {name!r} has no values.")
    return values


def _distribution(low: float, high: float, log: bool) -> Uniform:
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        name = "log_uniform" if log else "uniform"
        raise ValueError(f"{name}({low}, {high}) needs {'0 < ' if log else ''}low < high.")
    return Uniform(low, high, log)


def _axes_of(part: Points) -> Axes:
    """The part if it consists of axes, else ()."""
    axes = tuple(item for item in part if isinstance(item, Axis))
    return axes if len(axes) == len(part) else ()


def _point(axes: Axes, values: Sequence[Any]) -> Point:
    point = Point()
    for axis, value in builtins.zip(axes, values, strict=True):
        point += Point({axis.name: value}) if axis.kind == ARGS else Point(keys={axis.name: value})
    return point


def _draw(choice: Axes | tuple[Point, ...], rng: random.Random) -> Point:
    axes = _axes_of(choice)
    if not axes:
        return rng.choice(points(choice))
    drawn = [a.values.draw(rng) if isinstance(a.values, Uniform) else rng.choice(a.values) for a in axes]
    return _point(axes, drawn)


def _names(column: Sequence[Point]) -> str:
    return " and ".join(column[0].axes) if column else "nothing"
