"""Numbers by layer: learned temperatures, and how evenly attention is spread."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitjax.analysis import curves
from vitjax.analysis.attention.look import Look


class Ink(NamedTuple):
    """Colours of text, grid and lines."""

    text: str
    grid: str
    lines: Sequence[str]


OF_PAGE = Ink(curves.TEXT, curves.GRID, curves.COLORS)
ON_WHITE = Ink(
    "#1a1f29",
    "#dfe3e9",
    ("#2563c9", "#d9730d", "#14895f", "#a23fb5", "#c0334d", "#0e8ca3", "#8a6d1a", "#6b7280"),
)

Chart = Callable[[Any, Ink], None]


def charts(looks: Sequence[Look]) -> dict[str, tuple[str, Chart]]:
    """The charts that there is something to draw in: `{file name: (title, paint(figure, ink))}`."""
    found: dict[str, tuple[str, Chart]] = {}
    if any(values is not None for look in looks for values in look.temperature):
        found["temperature"] = "Learned temperature", lambda *to: _temperature(looks, *to)
    if any(np.isfinite(np.concatenate(look.divergence)).any() for look in looks):
        found["divergence"] = "KL divergence from uniform attention", lambda *to: _divergence(looks, *to)
        found["entropy"] = "Entropy, as a share of its most", lambda *to: _entropy(looks, *to)
    return found


def svg(name: str, title: str, paint: Chart) -> str:
    """A chart for the page, in the page's colours."""
    return curves.svg(name, lambda figure: paint(figure, OF_PAGE), (4.2, 2.7), label=title)


def png(paint: Chart) -> bytes:
    """A chart as a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure, ON_WHITE)
        figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _temperature(looks: Sequence[Look], figure: Any, ink: Ink) -> None:
    """Mean over heads of 1/scale by layer, the least and the largest head, and where it began or stays."""
    axes = figure.add_subplot()
    for start in {tuple(look.start) for look in looks}:
        axes.plot(_numbers(start), start, color=ink.text, linewidth=1, linestyle="--", label="where it began")
    for color, look in zip(ink.lines, looks, strict=False):
        if any(values is not None for values in look.temperature):
            by_head = [np.array([np.nan]) if values is None else values for values in look.temperature]
            _line(axes, by_head, color, look.network.label)
    _dress(figure, axes, ink, "1 / scale")


def _divergence(looks: Sequence[Look], figure: Any, ink: Ink) -> None:
    """Over the keys that a query may see; dashed, the paper's estimate, where it is another one."""
    axes = figure.add_subplot()
    for color, look in zip(ink.lines, looks, strict=False):
        _line(axes, look.divergence, color, look.network.label)
        if estimate_differs(look):
            values = [layer.mean() for layer in look.published]
            axes.plot(
                _numbers(values), values, color=color, linewidth=1.2, linestyle="--",
                label=f"{look.network.label}: the paper's estimate",
            )  # fmt: skip
    _dress(figure, axes, ink, "KL(uniform ‖ p), nats")


def estimate_differs(look: Look) -> bool:
    """Whether the paper's estimate is another number than the divergence it is for, by more than 1 %."""
    ours, theirs = (np.array([layer.mean() for layer in v]) for v in (look.divergence, look.published))
    return bool(np.nanmax(np.abs(ours - theirs) - 0.01 * np.abs(ours), initial=0) > 0)


def _entropy(looks: Sequence[Look], figure: Any, ink: Ink) -> None:
    axes = figure.add_subplot()
    for color, look in zip(ink.lines, looks, strict=False):
        _line(axes, look.entropy, color, look.network.label)
    _dress(figure, axes, ink, "share of log(keys)")


def _line(axes: Any, by_head: Sequence[np.ndarray], color: str, label: str) -> None:
    """The mean over heads, and from the least to the largest of them."""
    numbers, mean = _numbers(by_head), [values.mean() for values in by_head]
    low, high = [values.min() for values in by_head], [values.max() for values in by_head]
    axes.plot(numbers, mean, color=color, linewidth=1.6, marker="o", markersize=3.5, label=label)
    axes.fill_between(numbers, low, high, color=color, alpha=0.15, linewidth=0)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.arange(len(values))


def _dress(figure: Any, axes: Any, ink: Ink, what: str) -> None:
    from matplotlib import ticker

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(ink.grid)
    axes.tick_params(colors=ink.text, length=0)
    axes.grid(axis="y", color=ink.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("layer", color=ink.text)
    axes.set_ylabel(what, color=ink.text)
    figure.legend(loc="outside upper left", frameon=False, labelcolor=ink.text, fontsize=7.5, ncols=2)
