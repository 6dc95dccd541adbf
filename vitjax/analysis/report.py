"""One self-contained HTML page on a run. `python -m vitjax.analysis.report WORKDIR` makes it again."""

import argparse
import base64
import importlib.resources
import json
import math
import os
import pathlib
import string
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np

from vitjax import files
from vitjax.analysis import curves
from vitjax.analysis import predictions as preds
from vitjax.errors import UserError
from vitjax.metrics import PHASES, hms, read_histograms, read_metrics
from vitjax.run_info import read_run_info

REPORT_FILE = "report.html"
MATRIX_CLASSES = 40  # above, a matrix is a grey square: the most confused pairs say more

# The order of the bar, what trains first; numbers are those of the page's colours.
_PHASE_COLORS = {
    "step": 2,
    "data wait": 1,
    "compile": 3,
    "eval": 0,
    "checkpoint": 5,
    "start-up": 6,
    "other": 7,
}
_ACCURACY = "prec@1"


def write_report(
    workdir: str | os.PathLike,
    *,
    predictions: Mapping[str, np.ndarray] | None = None,
    class_names: Sequence[str] = (),
    images: Callable[[int], np.ndarray] | None = None,
) -> pathlib.Path:
    """Writes WORKDIR/report.html from what the folder holds, and returns its path.

    Read are `metrics.jsonl`, `histograms.jsonl`, `config.json`, `run.json` and `predictions.npz`; any of them
    may be missing.
    Given predictions are first written to `predictions.npz` with the pictures that are shown, so that the
    page can be made again without model and data.

    Args:
      workdir: folder of the run.
      predictions: arrays `_id` [N], `label` [N], `top5` int [N, k] and `top5_prob` float [N, k], k <= 5,
        classes by falling probability. Examples with a negative label are left out.
      class_names: names by class.
      images: gives the picture of an `_id` as uint8 [H, W, C].

    Raises:
      UserError: the page cannot be written, or there is nothing in the folder to report on.
    """
    workdir = pathlib.Path(workdir)
    if predictions is not None:
        answers = preds.from_arrays(predictions, class_names)
        if answers is not None:
            if images is not None:
                preds.add_thumbnails(answers, images)
            preds.save(workdir, answers)
    rows, info, answers = read_metrics(workdir), read_run_info(workdir), preds.load(workdir)
    config_text = _config_text(workdir)
    if not (rows or info or answers or config_text):
        raise UserError(
            f"There is nothing to report on in {os.fspath(workdir)!r}: it holds none of metrics.jsonl, "
            "run.json, config.json and predictions.npz. Name the workdir of a run."
        )
    files.replace(
        workdir / REPORT_FILE,
        _page(workdir.resolve().name, rows, read_histograms(workdir), info, answers, config_text),
    )
    return workdir / REPORT_FILE


def _config_text(workdir: pathlib.Path) -> str:
    try:
        text = (workdir / "config.json").read_text()
    except OSError:
        return ""
    try:
        return json.dumps(json.loads(text), indent=2)
    except ValueError:
        return text


def _page(
    name: str,
    rows: list[dict],
    histograms: list[dict],
    info: dict,
    answers: preds.Predictions | None,
    config_text: str,
) -> str:
    template = string.Template(
        (importlib.resources.files("vitjax.analysis") / "report.html").read_text("utf-8")
    )
    sections = [
        _tiles(rows, info, answers),
        _section("Curves", _curves(rows)),
        _section("Latent weights", _latent_weights(histograms)),
        _section("Where the time went", _wall_time(info.get("wall_time") or {})),
        _section("Confusion", _confusion(answers)) if answers else "",
        _section("Predictions", _examples(answers)) if answers else "",
        _section("Details", _details(rows, info, config_text)),
    ]
    return template.substitute(
        title=escape(name), subtitle=escape(_subtitle(info)), sections="\n".join(s for s in sections if s)
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>\n{content}</section>" if content else ""


def _subtitle(info: dict) -> str:
    devices = ", ".join(f"{d['count']} {d['kind']}" for d in info.get("devices") or ())
    git = info.get("git") or {}
    revision = git.get("revision", "")[:10] + (" (changed since)" if git.get("dirty") else "")
    started = str(info.get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    return " · ".join(part for part in (started, devices, revision) if part)


# Headline numbers


def _tiles(rows: list[dict], info: dict, answers: preds.Predictions | None) -> str:
    tiles = [_accuracy_tile(rows, answers), _loss_tile(rows), _steps_tile(rows, info)]
    params = _last(rows, "num_params")
    if params is not None:
        tiles.append(("Parameters", _si(params), f"{params:,.0f}"))
    wall = info.get("wall_time") or {}
    total = sum(wall.values())
    if total:
        tiles.append(("Wall time", hms(total), f"{wall.get('step', 0) / total:.0%} of it in training steps"))
    tiles.append(_speed_tile(rows))
    cards = (
        f'<div class="card tile"><span class="soft">{escape(label)}</span><b>{escape(value)}</b>'
        f'<span class="soft">{escape(note)}</span></div>'
        for label, value, note in filter(None, tiles)
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def _accuracy_tile(rows: list[dict], answers: preds.Predictions | None) -> tuple[str, str, str] | None:
    found = [name for name in curves.names(rows) if name.split("/")[-1] == _ACCURACY]
    found.sort(key=lambda name: not name.startswith("val"))
    for name in found:
        steps, values = curves.series(rows, name)
        finite = np.isfinite(values)
        if finite.any():
            steps, values = steps[finite], values[finite]
            best = values.argmax()
            return (
                f"Top-1, {name}",
                f"{values[-1]:.2%}",
                f"best {values[best]:.2%} at step {steps[best]:,.0f}",
            )
    if answers:
        return "Top-1", f"{answers.accuracy():.2%}", f"of {len(answers.label):,} examples"
    return None


def _loss_tile(rows: list[dict]) -> tuple[str, str, str] | None:
    steps, values = curves.series(rows, "training_loss")
    if not len(values):
        return None
    note = f"was {values[0]:.4g} at step {steps[0]:,.0f}" if len(values) > 1 else f"at step {steps[0]:,.0f}"
    return "Training loss", f"{values[-1]:.4g}", note


def _steps_tile(rows: list[dict], info: dict) -> tuple[str, str, str] | None:
    if not rows:
        return None
    step, total = rows[-1]["step"], info.get("total_steps")
    batch = f"{step * info['batch_size']:,} examples" if info.get("batch_size") else ""
    if total and step < total:
        return "Steps", f"{step:,}", f"of {total:,}: not finished"
    return "Steps", f"{step:,}", batch


def _speed_tile(rows: list[dict]) -> tuple[str, str, str] | None:
    for title, unit in (("Images/s", "img"), ("Tokens/s", "tokens")):
        for name, note in ((f"{unit}/sec", "all devices together"), (f"{unit}/sec/core", "each device")):
            values = curves.series(rows, name)[1]
            values = values[np.isfinite(values)]
            if len(values):
                return f"{title}, median", _si(float(np.median(values))), note
    return None


def _last(rows: list[dict], name: str) -> float | None:
    values = curves.series(rows, name)[1]
    return float(values[-1]) if len(values) and math.isfinite(values[-1]) else None


def _si(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


# Curves


def _curves(rows: list[dict]) -> str:
    charts = []
    for title, names, style in _groups(curves.names(rows)):
        lines = [curves.series(rows, name) for name in names]
        shown = [(n, line) for n, line in zip(names, lines, strict=True) if np.isfinite(line[1]).any()]
        for at in range(0, len(shown), curves.MAX_LINES):
            charts.append(_chart(f"f{len(charts)}", title, shown[at : at + curves.MAX_LINES], style))
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


def _groups(names: list[str]) -> Iterable[tuple[str, list[str], dict[str, bool]]]:
    """(title, metric names, style) of each chart."""

    def ending(*ends: str) -> list[str]:
        return [name for name in names if "/" in name and name.split("/")[-1] in ends]

    few_shot = [name for name in names if "shot" in name.split("/")[-1]]
    yield "Training loss", [n for n in names if n == "training_loss"], {"noisy": True}
    yield "Accuracy", ending(_ACCURACY, "acc", "accuracy"), {"percent": True}
    yield "Accuracy, top 5", ending("prec@5"), {"percent": True}
    yield "Evaluation loss", ending("loss"), {}
    yield "Few-shot accuracy", few_shot, {"percent": True}
    yield "BLEU", ending("bleu"), {}
    yield "Perplexity", ending("perplexity"), {"log": True}
    yield "Learning rate", [n for n in names if n.startswith(("global_schedule", "learning_rate", "lr"))], {}
    yield (
        "Norms",
        [n for n in names if n in ("l2_grads", "l2_params", "l2_updates")],
        {"log": True, "noisy": True},
    )
    yield (
        "Signs flipped by an update",
        [n for n in names if n == "binary/signs_flipped"],
        {"percent": True, "noisy": True},
    )
    passes = [f"binary/pass/{kind}" for kind in ("weights", "activations", "attention")]
    yield "Passed by straight-through gradients", [n for n in passes if n in names], {"percent": True}
    attention = [n for n in ("binary/attention_on", "binary/attention_dead") if n in names]
    yield "Binary attention", attention, {"percent": True}
    yield "Images/s", [n for n in names if n == "img/sec"], {"noisy": True}
    yield "Tokens/s", [n for n in names if n == "tokens/sec"], {"noisy": True}


def _chart(key: str, title: str, shown: list[tuple[str, curves.Series]], style: dict[str, bool]) -> str:
    svg = curves.chart(key, [line for _, line in shown], **style)
    number = "{:.2%}".format if style.get("percent") else "{:.4g}".format
    legend = "".join(
        f'<li><i style="background:var(--c{i})"></i>{escape(name)} <b>{number(values[-1])}</b></li>'
        for i, (name, (_, values)) in enumerate(shown)
    )
    return (
        f'<figure class="card curve"><h3>{escape(title)}</h3>{svg}<ul class="legend">{legend}</ul></figure>'
    )


# Histograms


def _latent_weights(rows: list[dict]) -> str:
    """Each histogram at its first step, half way and at the last: shares of all weights, a line a step."""
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    charts = []
    for name in names:
        found = [(row["step"], row[name]) for row in rows if name in row]
        chosen = [found[at] for at in sorted({0, len(found) // 2, len(found) - 1})]
        svg = curves.histograms(f"h{len(charts)}", [(h["largest"], h["counts"]) for _, h in chosen])
        legend = "".join(
            f'<li><i style="background:var(--c{i})"></i>step {step:,}</li>'
            for i, (step, _) in enumerate(chosen)
        )
        title = escape(name.removeprefix("binary/latent_weights").strip("/") or "all binary layers")
        charts.append(
            f'<figure class="card curve"><h3>{title}</h3>{svg}<ul class="legend">{legend}</ul></figure>'
        )
    return f'<div class="grid">{"".join(charts)}</div>' if charts else ""


# Wall time


def _wall_time(split: dict[str, float]) -> str:
    total = sum(split.values())
    if not total:
        return ""
    order = [name for name in _PHASE_COLORS if split.get(name, 0) / total >= 0.0005]
    order += [name for name in split if name not in PHASES]
    bar, legend = [], []
    for name in order:
        color, share = _PHASE_COLORS.get(name, 7), split[name] / total
        name, time = escape(name), hms(split[name])
        bar.append(f'<div style="width:{share:.4%};background:var(--c{color})" title="{name} {time}"></div>')
        legend.append(f'<li><i style="background:var(--c{color})"></i>{name} <b>{share:.1%}</b> {time}</li>')
    legend = f'<ul class="legend soft">{"".join(legend)}</ul>'
    return f'<div class="card"><div class="bar">{"".join(bar)}</div>{legend}</div>'


# Confusion


def _confusion(answers: preds.Predictions) -> str:
    count = f"{len(answers.label):,} examples, top-1 {answers.accuracy():.2%}"
    if answers.top5.shape[1] > 1 and answers.num_classes > 5:
        count += f", top-{answers.top5.shape[1]} {answers.accuracy(5):.2%}"
    if answers.num_classes <= MATRIX_CLASSES:
        count += ". Rows: true class; columns: answer; stronger: more of the true class."
        matrix = f'<div class="scroll">{_matrix(answers)}</div>'
        return f'<div class="card"><p class="soft">{count}</p>{matrix}</div>'
    pairs = [
        (answers.name(true), answers.name(answer), f"{n:,}", f"{share:.1%}")
        for true, answer, n, share in preds.most_confused(answers)
    ]
    hardest = [
        (answers.name(c), f"{n:,}", f"{accuracy:.1%}") for c, n, accuracy in preds.hardest_classes(answers)
    ]
    left = _table(("true class", "answer", "examples", "of class"), pairs, 2)
    right = _table(("class", "examples", "accuracy"), hardest, 1)
    return (
        f'<p class="soft">{count}, {answers.num_classes:,} classes.</p><div class="two">'
        f'<div class="card"><h3>Most confused</h3>{left}</div>'
        f'<div class="card"><h3>Hardest classes</h3>{right}</div></div>'
    )


def _matrix(answers: preds.Predictions) -> str:
    """The confusion matrix as SVG: one rectangle for each pair that occurs."""
    matrix = preds.confusion_matrix(answers)
    size = len(matrix)
    cell, names = 24, [answers.name(c) for c in range(size)]
    margin = 14 + 6.2 * min(max(map(len, names)), 14)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    parts = []
    for i, name in enumerate(names):
        short, at = escape(name if len(name) <= 14 else name[:13] + "…"), margin + (i + 0.5) * cell
        parts.append(f'<text x="{margin - 6:.1f}" y="{at + 3.5:.1f}" text-anchor="end">{short}</text>')
        turned = f'transform="rotate(-60 {at + 3:.1f} {margin - 6:.1f})"'
        parts.append(f'<text x="{at + 3:.1f}" y="{margin - 6:.1f}" {turned}>{short}</text>')
    for i, j in np.argwhere(matrix):
        color, x, y = "var(--c2)" if i == j else "var(--c4)", margin + j * cell, margin + i * cell
        title = f"{escape(names[i])} taken for {escape(names[j])}: {matrix[i, j]:,} ({shares[i, j]:.1%})"
        opacity = 0.1 + 0.9 * math.sqrt(shares[i, j])  # the root: a few percent of mistakes are to be seen
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" height="{cell - 1}" rx="3" fill="{color}"'
            f' fill-opacity="{opacity:.2f}"><title>{title}</title></rect>'
        )
        if size <= 20:
            fill = "var(--card)" if opacity > 0.5 else "currentColor"
            parts.append(
                f'<text x="{x + cell / 2 - 0.5:.1f}" y="{y + cell / 2 + 3:.1f}" text-anchor="middle"'
                f' font-size="9" fill="{fill}" pointer-events="none">{matrix[i, j]}</text>'
            )
    height = margin + size * cell
    width = height + margin / 2  # turned names reach beyond the last column
    least, most = min(0.8 * width, 760), min(1.5 * width, 1000)
    style = f"font-size:10.5px;min-width:{least:.0f}px;max-width:{most:.0f}px"
    return (
        f'<svg class="matrix" viewBox="0 0 {width:.0f} {height:.0f}" style="{style}" fill="currentColor"'
        f' role="img" aria-label="Confusion matrix of {size} classes">{"".join(parts)}</svg>'
    )


# Examples


def _examples(answers: preds.Predictions) -> str:
    wrong, right = preds.choose_examples(answers)
    parts = []
    for title, note, chosen in (
        ("Wrong", "the surest mistakes first", wrong),
        ("Right", "spread evenly over the split", right),
    ):
        cards = "".join(_example(answers, int(at)) for at in chosen if int(at) in answers.thumbnails)
        if cards:
            parts.append(
                f'<h3>{title} <span class="soft">· {note}</span></h3><div class="examples">{cards}</div>'
            )
    return '<div style="height:14px"></div>'.join(parts)


def _example(answers: preds.Predictions, at: int) -> str:
    png, true = answers.thumbnails[at], int(answers.label[at])
    height, width = int.from_bytes(png[20:24], "big"), int.from_bytes(png[16:20], "big")  # of the PNG header
    tiny = ' class="tiny"' if max(height, width) < 100 else ""
    data = base64.b64encode(png).decode()
    image = f'<img{tiny} alt="{escape(answers.name(true))}" src="data:image/png;base64,{data}">'
    lines = []
    for answer, prob in list(zip(answers.top5[at], answers.top5_prob[at], strict=True))[:3]:
        kind = "answer true" if answer == true else "answer"
        name = escape(answers.name(int(answer)))
        lines.append(
            f'<div class="{kind}"><i style="width:{min(max(prob, 0), 1):.1%}"></i>'
            f'<span title="{name}">{name}</span><span>{prob:.0%}</span></div>'
        )
    right = answers.top5[at, 0] == true
    mark = '<span class="good">✓</span>' if right else '<span class="bad">✗</span> true:'
    name = escape(answers.name(true))
    number = f'title="example {answers.ids[at]}, {name}"'
    return (
        f'<div class="card example">{image}<p class="truth" {number}>{mark} {name}</p>{"".join(lines)}</div>'
    )


# Details


def _details(rows: list[dict], info: dict, config_text: str) -> str:
    run = [
        ("command", info.get("command")),
        ("processes", info.get("processes")),
        ("started", info.get("started")),
    ]
    git = info.get("git") or {}
    run.append(("git revision", git.get("revision", "") + (", with changes" if git.get("dirty") else "")))
    run += [(d["platform"], f"{d['count']} {d['kind']}") for d in info.get("devices") or ()]
    run = [(name, str(value)) for name, value in run if value]
    metrics = []
    for name in curves.names(rows):
        steps, values = curves.series(rows, name)
        low, high = (
            (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (math.nan, math.nan)
        )
        metrics.append((name, _plain(values[-1]), f"{steps[-1]:,.0f}", _plain(low), _plain(high)))
    parts = [
        ("Config", f"<pre>{escape(config_text)}</pre>" if config_text else ""),
        ("Run", _table(None, run, 9) if run else ""),
        ("Versions", _table(None, list(info["versions"].items()), 9) if info.get("versions") else ""),
        ("All metrics", _table(("metric", "last", "at step", "min", "max"), metrics, 1) if metrics else ""),
    ]
    return "".join(
        f'<details class="card"><summary>{title}</summary><div class="scroll">{content}</div></details>'
        for title, content in parts
        if content
    )


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e15 and value == round(value) else f"{value:.6g}"


def _table(head: Sequence[str] | None, rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """A table of text, columns from `numbers_from` on to the right; without head, the first column is it."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [tag if head or i else "th" for i in range(len(cells))]
        return "".join(
            f"<{kind}{' class=number' if i >= numbers_from else ''}>{escape(str(text))}</{kind}>"
            for i, (kind, text) in enumerate(zip(kinds, cells, strict=True))
        )

    top = f"<tr>{row(head, 'th')}</tr>" if head else ""
    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table>{top}{body}</table>"


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page of the workdir named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitjax.analysis.report", description=__doc__)
    parser.add_argument("workdir", help="folder of a run, finished or not")
    try:
        print(write_report(parser.parse_args(argv).workdir))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
