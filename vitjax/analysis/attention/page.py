"""One self-contained HTML page of maps and charts, beside the same pictures as PNG files."""

import base64
import importlib.resources
import pathlib
import re
import string
from collections.abc import Sequence
from html import escape

import numpy as np

from vitjax import files
from vitjax.analysis.attention import charts, pictures
from vitjax.analysis.attention.images import Examples
from vitjax.analysis.attention.look import Look

PAGE = "attention.html"

TITLES = {"cls": "Attention of one layer", "rollout": "Rollout", "heads": "Heads of one layer"}
HOW = {
    "cls": "Attention weights of the layer named above, from the query named there to the patches, the mean "
    "over heads.",
    "rollout": "A / 2 + I / 2, A the mean over heads, multiplied over the layers of the last stage. What "
    "pools between stages is no attention and is not followed: a cell of a pooled map stands for several "
    "patches.",
    "heads": "The same weights of the same layer, head by head.",
}
SCALING = (
    "Each map has its own scale, violet at its minimum, red at its maximum: two maps' colours do not compare."
)
WIDTHS = {"cls": 150, "rollout": 150, "heads": 260}  # of a picture on the page, in pixels


def write(out: pathlib.Path, looks: Sequence[Look], examples: Examples) -> pathlib.Path:
    """Writes all PNG files and the page into a folder; returns the page's path.

    Raises:
      UserError: the folder cannot be written to.
    """
    folder = files.folder(out / "maps")
    names = _file_names([look.network.label for look in looks])
    for index in range(len(examples.names)):
        for look, name in zip(looks, names, strict=True):
            for method in look.maps:
                picture = pictures.enlarged(pictures.drawn(look, method, index))
                files.replace(folder / f"{index:03d}_{method}_{name}.png", pictures.png(picture))
    sheet = pictures.side_by_side(looks)
    if sheet is not None:
        files.replace(out / "attention.png", sheet)
    drawn = charts.charts(looks)
    for name, (_, paint) in drawn.items():
        files.replace(out / f"{name}.png", charts.png(paint))
    template = string.Template(
        (importlib.resources.files("vitjax.analysis") / "report.html").read_text("utf-8")
    )
    images = {method: _section(method, looks, examples) for method in looks[0].maps}
    heads = images.pop("heads", "")
    sections = [_networks(looks), *images.values(), _charts(drawn), heads, _by_layer(looks)]
    labels = " · ".join(look.network.label for look in looks)
    page = template.substitute(title="Attention", subtitle=escape(labels), sections="\n".join(sections))
    files.replace(out / PAGE, page)
    return out / PAGE


def _file_names(labels: Sequence[str]) -> list[str]:
    """Labels as parts of file names, each another one."""
    names: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w.=-]+", "_", label)[:60] or "model"
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    return names


def _networks(looks: Sequence[Look]) -> str:
    rows = []
    for look in looks:
        layer = look.shown_layer
        kind = "windows" if layer.windows is not None else "all of the map"
        rows.append(
            (
                look.network.label,
                type(look.network.model).__name__,
                f"{layer.name} ({look.shown} of 0 to {len(look.layers) - 1})",
                layer.whose,
                str(layer.attention.shape[1]),
                f"{layer.grid[0]} x {layer.grid[1]}, {kind}",
            )
        )
    head = ("network", "architecture", "layer shown", "who looks", "heads", "at a map of")
    return f'<section><div class="card scroll">{_table(head, rows)}</div></section>'


def _section(method: str, looks: Sequence[Look], examples: Examples) -> str:
    """All images under the maps of a method; an image and its maps stay together."""
    groups = []
    for index, name in enumerate(examples.names):
        cells = []
        if method != "heads":
            caption = examples.classes[index] if examples.classes else pathlib.PurePath(name).name
            cells.append(_cell(looks[0].network.pictures[index], caption, name))
        for look in looks:
            caption = f"{look.network.label}{_answer(look, examples, index)}"
            spoken = f"{name}, {TITLES[method]}, {look.network.label}"
            cells.append(_cell(pictures.drawn(look, method, index), caption, spoken))
        columns = f"repeat({len(cells)},{WIDTHS[method]}px)"
        groups.append(
            f'<div style="display:grid;gap:4px;grid-template-columns:{columns}">{"".join(cells)}</div>'
        )
    inside = f'<div class="scroll" style="display:flex;flex-wrap:wrap;gap:16px">{"".join(groups)}</div>'
    note = f'<p class="soft">{escape(HOW[method])} {escape(SCALING)}</p>'
    return f"<section><h2>{TITLES[method]}</h2>{note}{inside}</section>"


def _answer(look: Look, examples: Examples, index: int) -> str:
    """` → cat ✓`, where the classes are known."""
    if examples.classes is None or look.network.model.num_classes != len(examples.class_names):
        return ""
    answer = examples.class_names[int(look.answers[index])]
    return f" → {answer} {'✓' if answer == examples.classes[index] else '✗'}"


def _cell(picture: np.ndarray, caption: str, spoken: str) -> str:
    tiny = ' class="tiny"' if max(picture.shape[:2]) < 150 else ""
    data = base64.b64encode(pictures.png(picture)).decode()
    image = f'<img{tiny} alt="{escape(spoken)}" src="data:image/png;base64,{data}">'
    text = f'<p class="truth" title="{escape(spoken)}">{escape(caption)}</p>'
    return f'<div class="card example">{image}{text}</div>'


NOTES = {
    "temperature": "Mean over the heads of 1 / scale; shaded, from the least head to the largest. Below the "
    "dashed line attention has become sharper than at the temperature that it began with.",
    "divergence": "Mean over rows and over these images, of the keys that a query may see. Dashed, where it "
    "differs by more than 1 %: the paper's estimate -1/M Σ log(M p + 1e-12), in which every masked key adds "
    "27.6 / M nats that no attention paid. Shaded: from the least head to the largest.",
    "entropy": "1: all keys that a query may see get the same. Shaded: from the least head to the largest.",
}


def _charts(drawn: dict[str, tuple[str, charts.Chart]]) -> str:
    cards = [
        f'<figure class="card curve"><h3>{escape(title)}</h3>{charts.svg(name, title, paint)}'
        f'<figcaption class="soft">{escape(NOTES[name])}</figcaption></figure>'
        for name, (title, paint) in drawn.items()
    ]
    if not cards:
        return ""
    return f'<section><h2>By layer</h2><div class="two">{"".join(cards)}</div></section>'


def _by_layer(looks: Sequence[Look]) -> str:
    parts = []
    for look in looks:
        rows = [
            (
                layer.name,
                str(layer.attention.shape[1]),
                f"{layer.grid[0]} x {layer.grid[1]}",
                _number(look.divergence[at]),
                _number(look.published[at]),
                _number(look.entropy[at]),
                _number(look.temperature[at]),
            )
            for at, layer in enumerate(look.layers)
        ]
        head = ("layer", "heads", "map", "KL, nats", "KL, paper's estimate", "entropy share", "temperature")
        parts.append(
            f'<details class="card"><summary>{escape(look.network.label)}: numbers by layer</summary>'
            f'<div class="scroll">{_table(head, rows)}</div></details>'
        )
    return f"<section>{''.join(parts)}</section>"


def _number(values: np.ndarray | None) -> str:
    """The mean over heads."""
    return "-" if values is None or not np.isfinite(values).all() else f"{values.mean():.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(text)}</th>" for text in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
