"""Published accuracy against speed, as in Figure 1 of the DeiT paper (arXiv 2012.12877), by matplotlib."""

import io
from collections.abc import Sequence
from typing import Any

from vitjax.analysis.published import Published, of

MARKERS = "osD^vPX*"


def draw(rows: Sequence[Any], kind: str) -> bytes | None:
    """Draws top-1 accuracy against inference speed, one panel a dtype, with the same models on a V100 before.

    Args:
      rows: `throughput.Row`s; of the batch sizes of a model the one with the most images a second counts.
      kind: `png` or `svg`.

    Returns: the file; None if no accuracy of a measured model is published.
    """
    panels = {}
    for dtype in dict.fromkeys(row.dtype for row in rows):
        points = _points([row for row in rows if row.dtype == dtype])
        if points:
            device = next(row.device for row in rows)
            panels[f"measured: {device}, {dtype}"] = points
    if not panels:
        return None
    shown = dict.fromkeys(result for points in panels.values() for result, _ in points)
    v100 = [(result, result.v100) for result in shown if result.v100]
    panels = ({"published: V100 GPU": v100} if v100 else {}) | panels
    series = list(dict.fromkeys(result.series for result in shown))
    return _paint(panels, series, kind)


def _points(rows: Sequence[Any]) -> list[tuple[Published, float]]:
    """What is published of the models in `rows`, with the highest measured speed of each."""
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        if row.mode == "inference" and row.images_per_second:
            key = row.model, row.resolution
            best[key] = max(best.get(key, 0.0), row.images_per_second)
    return [(result, rate) for key, rate in best.items() for result in of(*key)]


def _paint(panels: dict[str, list[tuple[Published, float]]], series: Sequence[str], kind: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "throughput", "font.size": 9}):
        figure = Figure(figsize=(0.6 + 4.4 * len(panels), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for plot, (title, points) in zip(axes, panels.items(), strict=True):
            _panel(plot, title, points, series)
        axes[0].set_ylabel("ImageNet top-1 accuracy (published)")
        drawn = {}  # a panel need not have all series
        for plot in axes:
            handles, labels = plot.get_legend_handles_labels()
            drawn |= dict(zip(labels, handles, strict=True))
        figure.legend(
            [drawn[name] for name in series], series, loc="outside lower center", ncols=4, frameon=False
        )
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=140, metadata=metadata)
    return buffer.getvalue()


def _panel(plot: Any, title: str, points: Sequence[tuple[Published, float]], series: Sequence[str]) -> None:
    from matplotlib import colormaps, ticker

    for index, name in enumerate(series):
        inside = sorted(((r, p) for p, r in points if p.series == name), key=lambda pair: pair[0])
        if not inside:
            continue
        color, marker = colormaps["tab10"](index % 10), MARKERS[index % len(MARKERS)]
        x, y = [rate for rate, _ in inside], [result.top1 for _, result in inside]
        plot.plot(x, y, marker=marker, color=color, markersize=5, linewidth=1.2, label=name)
        for rate, result in inside:
            plot.annotate(
                _short_name(result),
                (rate, result.top1),
                (4, 4),
                textcoords="offset points",
                fontsize=6.5,
                color=color,
            )
    plot.set_xscale("log")
    plot.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    plot.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    plot.xaxis.set_minor_formatter(ticker.NullFormatter())
    plot.yaxis.set_major_formatter(ticker.PercentFormatter(1.0, decimals=0))
    plot.set_title(title, fontsize=9)
    plot.set_xlabel("images/s")
    plot.margins(x=0.15, y=0.08)
    plot.grid(color="0.88", linewidth=0.7)
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)


def _short_name(result: Published) -> str:
    """`b16↑384` of `deit_b16_distilled` at 384 pixels: the series says the rest."""
    name = result.model.removesuffix("_distilled").partition("_")[2] or result.model
    return (
        f"{name}↑{result.resolution}"
        if result.resolution != 224 and "efficientnet" not in result.model
        else name
    )
