"""The pictures of a sweep's page: matplotlib's SVG in the page's colours (`vitjax.analysis.curves.svg`)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitjax.analysis.curves import COLORS, GRID, TEXT, svg

MARKERS = "osD^vPX*"  # one for each round of colours


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
      x: of each point.
      y: of each point.
      deviation: lengths of the error bars, NaN for none.
      names: of the points, where they are written.
    """

    x: Sequence[float]
    y: Sequence[float]
    deviation: Sequence[float] = ()
    names: Sequence[str] = ()


def number(value: float, percent: bool) -> str:
    """A metric as text: in percent with one digit, or with four digits."""
    return "" if math.isnan(value) else f"{100 * value:.1f}" if percent else f"{value:.4g}"


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a series."""
    return COLORS[index % len(COLORS)], MARKERS[index // len(COLORS) % len(MARKERS)]


def heat_map(
    key: str,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    limits: tuple[float, float],
    percent: bool,
    lower: bool,
    axes: tuple[str, str],
    label: str,
) -> str:
    """A grid of coloured cells with their values in them; the best are framed, an unmeasured one is a dash.

    Args:
      key: sets ids apart, see `curves.svg`.
      values: float [rows, columns], NaN where nothing was measured.
      rows: labels.
      columns: labels.
      limits: values of the darkest and the lightest cell.
      percent: values are shares, shown as percent.
      lower: low values are good.
      axes: names of the row and column axis.
      label: alternative text.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    height, width = values.shape
    longest = max(map(len, columns))
    turned = longest > 8
    inches = (1.1 + 0.07 * max(map(len, rows)) + 0.62 * width, 0.75 + 0.38 * height + 0.06 * longest * turned)
    low, high = limits

    def paint(figure: Any) -> None:
        plot = figure.add_subplot()
        for i, j in np.ndindex(height, width):
            value = float(values[i, j])
            if math.isnan(value):
                plot.text(j, i, "-", ha="center", va="center", color=TEXT)
                continue
            shade = 0.5 if high == low else float(np.clip((value - low) / (high - low), 0, 1))
            color = colormaps["viridis"](1 - shade if lower else shade)
            dark = np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.55
            plot.add_patch(Rectangle((j - 0.46, i - 0.43), 0.92, 0.86, facecolor=color, linewidth=0))
            text = number(value, percent)
            plot.text(j, i, text, ha="center", va="center_baseline", color="white" if dark else "black")
        best = (np.nanmin if lower else np.nanmax)(values)
        for i, j in np.argwhere(values == best) if np.isfinite(values).sum() > 1 else ():
            # In the gap between cells, where it is seen on light and dark pages alike.
            frame = Rectangle((j - 0.5, i - 0.49), 1, 0.98, fill=False, edgecolor=TEXT, linewidth=1.8)
            frame.set_clip_on(False)
            plot.add_patch(frame)
        plot.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xlabel=axes[1], ylabel=axes[0])
        plot.set_xticks(
            range(width), columns, rotation=30 if turned else 0, ha="right" if turned else "center"
        )
        plot.set_yticks(range(height), rows)
        _bare(plot)

    return svg(key, paint, inches, label)


def scatter(
    key: str,
    series: Sequence[Series],
    front: Series,
    *,
    x_label: str,
    y_label: str,
    percent: bool,
    lower: bool,
    more_is_better: bool,
    label: str,
) -> str:
    """Points over a logarithmic axis of costs or speeds, with error bars, and the Pareto front as steps.

    Args:
      key: sets ids apart, see `curves.svg`.
      series: points of one model each, in the order of their colours.
      front: the front's points, by rising x; `names` are written beside them.
      x_label: what x is, with its unit.
      y_label: the metric.
      percent: y are shares.
      lower: low y are good.
      more_is_better: high x are good (speed), not low ones (cost).
      label: alternative text.
    """

    def paint(figure: Any) -> None:
        from matplotlib import ticker

        plot = figure.add_subplot()
        for index, points in enumerate(series):
            color, marker = look(index)
            bars = np.nan_to_num(np.asarray(points.deviation, float))
            if bars.any():
                plot.errorbar(
                    points.x, points.y, bars, fmt="none", ecolor=color, elinewidth=1.2, alpha=0.6, zorder=2
                )
            plot.plot(points.x, points.y, marker, color=color, markersize=4.5, alpha=0.85, zorder=3, mew=0)
        # What can be had at a cost (or at a speed): the step lies on the side of the dearer point.
        where = "pre" if more_is_better else "post"
        plot.plot(
            front.x, front.y, color=TEXT, linewidth=1.1, alpha=0.7, drawstyle=f"steps-{where}", zorder=1
        )
        x = np.concatenate([points.x for points in series])
        plot.set_xscale("log")
        if x.max() < 20 * x.min():  # too narrow for powers of ten alone
            plot.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        plot.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: scientific(value)))
        plot.xaxis.set_minor_formatter(ticker.NullFormatter())
        plot.set(xlabel=x_label, ylabel=y_label)
        if percent:
            plot.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        if lower:
            plot.invert_yaxis()  # up is better on every picture
        _framed(plot)
        _name_points(plot, front, right=more_is_better)

    return svg(key, paint, (7.4, 4.0), label)


def _name_points(plot: Any, points: Series, right: bool) -> None:
    """Writes names up and to one side of points, one over the other where they would overlap."""
    taken: list[tuple[float, float, float]] = []  # left, right, bottom in shares of the axes
    line = 0.05
    to_axes = plot.transData + plot.transAxes.inverted()
    for x, y, name in zip(points.x, points.y, points.names, strict=False):
        if not name:
            continue
        at, height = to_axes.transform((x, y))
        start, end = sorted((at, at + (1 if right else -1) * (0.01 + 0.0125 * len(name))))
        low = height
        while any(start < e and s < end and abs(low - other) < line for s, e, other in taken):
            low += line
        taken.append((start, end, low))
        plot.annotate(
            name,
            (at, low),
            (6 if right else -6, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            color=TEXT,
            fontsize=8,
            ha="left" if right else "right",
            va="bottom",
        )


def scientific(value: float) -> str:
    """A tick of a logarithmic axis: plain up to five digits, else as in 1e18 or 1.25e18."""
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")  # matplotlib puts ticks in between on short axes
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def spread(
    key: str,
    names: Sequence[str],
    scores: Sequence[Sequence[float]],
    *,
    colors: Sequence[int],
    x_label: str,
    percent: bool,
    label: str,
) -> str:
    """One line a setting: every seed as a small dot, their mean and standard deviation as a bar with a mark.

    Args:
      key: sets ids apart, see `curves.svg`.
      names: of the settings, from the top.
      scores: the seeds' values of each.
      colors: number of the series that each belongs to.
      x_label: the metric.
      percent: values are shares.
      label: alternative text.
    """
    from matplotlib import ticker

    def paint(figure: Any) -> None:
        plot = figure.add_subplot()
        for at, (values, index) in enumerate(zip(scores, colors, strict=True)):
            color, marker = look(index)
            plot.plot(values, [at] * len(values), "|", color=color, markersize=9, alpha=0.9)
            bar = np.std(values, ddof=1) if len(values) > 1 else 0.0
            plot.errorbar(
                np.mean(values), at, xerr=bar, fmt=marker, color=color, markersize=4.5, mew=0, elinewidth=1.4
            )
        plot.set(ylim=(len(names) - 0.4, -0.6), xlabel=x_label)
        plot.set_yticks(range(len(names)), names)
        if percent:
            plot.xaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        _framed(plot, grid="x")

    return svg(key, paint, (7.4, 0.7 + 0.24 * len(names)), label)


def effect(
    key: str,
    values: Sequence[Any],
    labels: Sequence[str],
    points: Sequence[Sequence[float]],
    *,
    percent: bool,
    lower: bool,
    label: str,
) -> str:
    """The metric over the values of one axis: every setting faint, their mean as a line.

    Args:
      key: sets ids apart, see `curves.svg`.
      values: of the axis, in order; more than 8 numbers lie on a scale (logarithmic over two decades
        or more), others beside each other.
      labels: of the values.
      points: what the settings with each value measured.
      percent: they are shares.
      lower: low values are good.
      label: alternative text.
    """
    from matplotlib import ticker

    scale = len(values) > 8 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    x = np.asarray(values if scale else range(len(values)), float)

    def paint(figure: Any) -> None:
        plot = figure.add_subplot()
        for at, found in zip(x, points, strict=True):
            plot.plot([at] * len(found), found, "o", color=COLORS[0], markersize=3, alpha=0.3, mew=0)
        if not scale:
            plot.plot(
                x, [np.mean(found) for found in points], "o-", color=COLORS[0], markersize=5, linewidth=1.4
            )
            turned = sum(map(len, labels)) > 42
            plot.set_xticks(x, labels, rotation=30 if turned else 0, ha="right" if turned else "center")
            plot.set_xlim(-0.5, len(x) - 0.5)
        elif x.min() > 0 and x.max() >= 100 * x.min():
            plot.set_xscale("log")
        if percent:
            plot.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        if lower:
            plot.invert_yaxis()
        _framed(plot)

    return svg(key, paint, (4.6, 2.6), label)


def _bare(plot: Any) -> None:
    """No frame, text in the page's colour."""
    for spine in plot.spines.values():
        spine.set_visible(False)
    plot.tick_params(colors=TEXT, length=0, which="both")
    plot.xaxis.label.set_color(TEXT)
    plot.yaxis.label.set_color(TEXT)


def _framed(plot: Any, grid: str = "both") -> None:
    """A line below, a grid, text in the page's colour."""
    _bare(plot)
    plot.spines["bottom"].set_visible(True)
    plot.spines["bottom"].set_color(GRID)
    plot.grid(axis=grid, color=GRID, linewidth=0.7)
    plot.set_axisbelow(True)
