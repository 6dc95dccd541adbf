"""Metrics over steps, as SVG that takes its colours from the page it stands in."""

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

MAX_POINTS = 400  # of one line; a longer one is averaged down, so that the page stays small
MAX_LINES = 8  # of one chart: the page has as many colours

Series = tuple[np.ndarray, np.ndarray]  # steps, values

# matplotlib wants colours; these stand for the page's own and are replaced by them in the SVG.
TEXT, GRID = "#010203", "#010204"
COLORS = tuple(f"#0203{i:02x}" for i in range(MAX_LINES))


def series(rows: Sequence[dict[str, Any]], name: str) -> Series:
    """Steps and values, float [n], of one metric where it was written; non-finite values stay in."""
    points = [(row["step"], float(row[name])) for row in rows if name in row]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Names of all metrics, in the order of their first appearance."""
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]


def thin(steps: np.ndarray, values: np.ndarray, points: int = MAX_POINTS) -> Series:
    """Averages neighbours so that at most `points` are left. A non-finite value makes a gap (NaN)."""
    if len(steps) <= points:
        return steps, np.where(np.isfinite(values), values, math.nan)
    bins = np.array_split(np.arange(len(steps)), points)
    means = [values[b].mean() if np.isfinite(values[b]).all() else math.nan for b in bins]
    return np.array([steps[b[-1]] for b in bins]), np.array(means)


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a centred bell of about 1/20 of the curve, so that nothing lags; NaN are left out."""
    width = max(len(values) / 60, 1.0)
    at = np.arange(-int(3 * width), int(3 * width) + 1)
    bell = np.exp(-0.5 * (at / width) ** 2)
    known = np.isfinite(values)
    padded = [np.pad(np.where(known, v, 0.0), len(at) // 2) for v in (values, np.ones(len(values)))]
    total, weight = (np.convolve(v, bell, mode="valid") for v in padded)
    return np.divide(total, weight, out=np.full(len(values), math.nan), where=known)


def chart(
    key: str,
    lines: Sequence[Series],
    *,
    log: bool = False,
    percent: bool = False,
    noisy: bool = False,
) -> str:
    """Draws lines of (steps, values) as inline SVG; line i has the colour of the CSS variable `--c{i}`.

    Args:
      key: letters that set the ids of this SVG apart from those of others on the page.
      lines: float [n], float [n] each; at most MAX_LINES.
      log: logarithmic value axis, where all values are positive.
      percent: values are shares in [0, 1], shown as percent.
      noisy: show long lines smoothed, with what was measured faint behind them.
    """

    def paint(figure: Any) -> None:
        axes = figure.add_subplot()
        for color, (steps, values) in zip(COLORS, lines, strict=False):
            _line(axes, *thin(steps, values), color, noisy)
        _dress(axes, log and all(v[np.isfinite(v)].min(initial=1) > 0 for _, v in lines), percent)

    return svg(key, paint, (4.6, 2.5))


def histograms(key: str, shown: Sequence[tuple[float, Sequence[float]]]) -> str:
    """Draws histograms (largest, counts) of equal bins of [-largest, largest] as shares, one colour each.

    `key` as in `chart`; at most MAX_LINES. Areas are alike whatever the ranges.
    """

    def paint(figure: Any) -> None:
        from matplotlib import ticker

        axes = figure.add_subplot()
        for color, (largest, counts) in zip(COLORS, shown, strict=False):
            largest, counts = largest or 1e-12, np.asarray(counts, float)
            density = counts / max(counts.sum(), 1) * len(counts) / (2 * largest)
            edges = np.linspace(-largest, largest, len(counts) + 1)
            axes.stairs(density, edges, color=color, linewidth=1.4)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        axes.tick_params(colors=TEXT, length=0, which="both")
        axes.yaxis.set_major_locator(ticker.NullLocator())
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))

    return svg(key, paint, (4.6, 2.5))


def svg(key: str, paint: Callable[[Any], None], inches: tuple[float, float], label: str = "") -> str:
    """Returns what `paint(figure)` draws with matplotlib as inline SVG; it uses TEXT, GRID and COLORS.

    Args:
      key: letters that set the ids of this SVG apart from those of others on the page.
      paint: draws into a matplotlib figure.
      inches: width and height; the SVG is as wide as its box, and its text grows with it.
      label: what the picture shows, for those who do not see it; left out where the text beside it says so.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": key,
        "text.parse_math": False,
        "font.size": 9,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    spoken = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return _for_page(buffer.getvalue(), key).replace("<svg ", f"<svg {spoken} ", 1)


def _line(axes, steps: np.ndarray, values: np.ndarray, color: str, noisy: bool) -> None:
    if noisy and len(steps) > 60:
        axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
        values = smooth(values)
    axes.plot(steps, values, color=color, linewidth=1.6, solid_joinstyle="round")
    if len(steps) <= 30:
        axes.plot(steps, values, color=color, linestyle="none", marker="o", markersize=3.2)


def _dress(axes, log: bool, percent: bool) -> None:
    """Ticks, grid and frame."""
    from matplotlib import ticker

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=TEXT, length=0, which="both")
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    low, high = axes.dataLim.intervalx
    axes.xaxis.set_major_locator(
        ticker.MaxNLocator(5, integer=True) if high > low else ticker.FixedLocator([low])
    )
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        low, high = axes.get_ylim()
        if percent:
            axes.set_ylim(max(low, -0.02), min(high, 1.02))
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        elif high >= 10_000:
            axes.yaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        elif high < 0.01:  # learning rates
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _for_page(svg: str, key: str) -> str:
    """The <svg> element alone, with the page's colours and font, ids of its own, and as wide as its box."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would style the page
    head = r'<svg viewBox="\1">'
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', head, svg, count=1)
    svg = re.sub(r" font-family: [^;]*;", "", svg)
    # Coordinates to a hundredth of a point; only inside attributes, since tick labels are text.
    svg = re.sub(r'="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    svg = (
        svg.replace('id="', f'id="{key}-')
        .replace("url(#", f"url(#{key}-")
        .replace('xlink:href="#', f'href="#{key}-')
    )
    svg = svg.replace(TEXT, "currentColor").replace(GRID, "var(--line)")
    for i, color in enumerate(COLORS):
        svg = svg.replace(color, f"var(--c{i})")
    return svg
