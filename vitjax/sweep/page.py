"""The page of a sweep: one self-contained HTML file with the paper's figures drawn from its table."""

import argparse
import base64
import hashlib
import importlib.resources
import math
import pathlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from vitjax.sweep import advise, figures
from vitjax.sweep.markup import cell, html_table, legend, log_end, numeric, once, section, several, si, td
from vitjax.sweep.settings import (
    Setting,
    best,
    describe,
    label,
    ordered,
    pareto_front,
    where,
)
from vitjax.sweep.speed import SPEED_FILE, Speeds
from vitjax.sweep.table import STATUSES, TRIALS, Table, choose_metric, column

LOG_FILE = "log.txt"
MAX_SPREAD = 30  # settings in the picture of seeds
FEW = 3  # best settings of each model in it


class Page:
    """The page of a sweep as it stands: what is not there yet is named, not left out."""

    def __init__(
        self, table: Table, args: argparse.Namespace, axes: tuple[str | None, str | None, str | None]
    ):
        """Checks the metric against the table.

        Args:
          table: of the sweep.
          args: workdir and the options of `python -m vitjax.sweep report`.
          axes: of the heat maps: panels, rows, columns.
        """
        self.table, self.workdir = table, pathlib.Path(args.workdir)
        self.metric = choose_metric(table, args.metric)
        self.value, self.others = args.value, args.others
        self.panels, self.rows, self.columns = axes
        self.evidence = advise.Evidence(table, self.metric, self.value) if self.metric else None
        self.settings = self.evidence.settings if self.evidence else []
        self.speeds: Speeds | None = None
        self._keys = 0

    def html(self) -> str:
        """The whole page."""
        template = (importlib.resources.files("vitjax.sweep") / "report.html").read_text("utf-8")
        script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
        assert script
        digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
        sections = [self.tiles(), self.notes()]
        if self.settings:
            sections += [
                section("What the data say", self.advice()),
                section(self.heat_title(), self.heat_maps()),
                section(
                    "Accuracy against compute" if self.percent else "Score against compute", self.compute()
                ),
                section("Accuracy against speed" if self.percent else "Score against speed", self.speed()),
                section("Best settings", self.best_settings()),
                section("Each axis", self.effects()),
                section("Seeds", self.seeds()),
            ]
        sections += [section("Failed trials", self.failed()), section("All trials", self.trials())]
        return string.Template(template).substitute(
            script_hash=digest,
            title=escape(self.table.name),
            subtitle=escape(self.subtitle()),
            sections="\n".join(filter(None, sections)),
        )

    # Header

    def subtitle(self) -> str:
        """When, on what, with which code."""
        rows = self.table.rows
        times = sorted(row["started"] for row in rows if row["started"])
        devices = several(row["devices"] for row in rows)
        revisions = several(
            row["git_revision"][:10] + (" (changed since)" if row["git_dirty"] else "")
            for row in rows
            if row["git_revision"]
        )
        when = [f"{times[0]:%Y-%m-%d %H:%M}"] if times else []
        when += [f"{times[-1]:%Y-%m-%d %H:%M}"] if times and times[-1] != times[0] else []
        parts = (f"started {' to '.join(when)} UTC" if when else "", devices, revisions)
        return " · ".join(filter(None, parts))

    def tiles(self) -> str:
        """Headline numbers."""
        rows, count = self.table.rows, Counter(row["status"] for row in self.table.rows)
        open_ones = ", ".join(f"{count[s]} {s}" for s in STATUSES[1:] if count[s]) or "nothing is left"
        tiles = [("Trials done", f"{count['done']:,} of {len(rows):,}", open_ones)]
        if self.settings:
            top = best(self.settings, self.lower)
            tiles.append((f"Best {self.metric}", self.show(top.mean), describe(top, self.table.varying)))
        seeds = {row["seed"] for row in rows}
        settings = len({row["group"] for row in rows})
        tiles.append(("Settings", f"{settings:,}", f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"))
        hours = [row["device_hours"] for row in rows if row["device_hours"] is not None]
        if hours:
            tiles.append(("Device-hours", f"{sum(hours):,.3g}" if sum(hours) < 1e3 else f"{sum(hours):,.0f}",
                          f"of {len(hours):,} trials"))  # fmt: skip
        cards = (
            f'<div class="card tile"><span class="soft">{escape(name)}</span><b>{escape(text)}</b>'
            f'<span class="soft">{escape(note)}</span></div>'
            for name, text, note in tiles
        )
        return f'<div class="tiles">{"".join(cards)}</div>'

    def notes(self) -> str:
        """What is missing, in sentences."""
        rows, done = self.table.rows, self.table.done
        notes = []
        if len(done) < len(rows):
            notes.append(
                f"Figures show the {len(done):,} finished trials of {len(rows):,}; one that runs, waits or "
                "failed is in the table alone."
            )
        if any(row["status"] == "running" for row in rows):
            notes.append("A trial called running may also have been killed while it ran.")
        if not self.metric:
            notes.append("No trial has an evaluation metric so far: there is nothing to draw.")
        elif not self.settings:
            notes.append(f"No finished trial has measured {self.metric}: there is nothing to draw.")
        elif lacking := len(done) - sum(len(s.scores) for s in self.settings):
            notes.append(f"{lacking:,} finished trials have no finite {self.metric} and are left out.")
        if len({row["git_revision"] for row in rows if row["git_revision"]}) > 1:
            notes.append("The trials ran on several revisions of the code.")
        if len({row["devices"] for row in rows if row["devices"]}) > 1:
            notes.append("The trials ran on different devices: images/s and device-hours do not compare.")
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        return f'<ul class="notes card">{items}</ul>' if notes else ""

    # Figures

    @property
    def percent(self) -> bool:
        """Whether the metric is a share."""
        return bool(self.evidence and self.evidence.percent)

    @property
    def lower(self) -> bool:
        """Whether the metric is a loss."""
        return bool(self.evidence and self.evidence.lower)

    def show(self, value: float) -> str:
        """A value of the metric as text."""
        return "-" if math.isnan(value) else f"{value:.2%}" if self.percent else f"{value:.4g}"

    @property
    def metric_label(self) -> str:
        """The metric with which of its values."""
        return f"{self.metric}, {self.value}"

    def key(self) -> str:
        """Letters for the ids of the next picture."""
        self._keys += 1
        return f"s{self._keys}"

    def advice(self) -> str:
        """The conclusions of `advise`."""
        assert self.evidence
        found = advise.findings(self.evidence)
        items = []
        for finding in found:
            head = f"<b>{escape(finding.title)}</b>: {escape(finding.text)}"
            lines = "".join(f"<li>{escape(line)}</li>" for line in finding.details)
            more = (
                f"<details><summary>{head}</summary><ul>{lines}</ul></details>" if lines else f"<p>{head}</p>"
            )
            items.append(f"<li>{more}</li>")
        note = f"{advise.headline(self.evidence)}. {advise.CAUTION}"
        return (
            f'<div class="card"><ul class="advice">{"".join(items)}</ul>'
            f'<p class="soft caption">{escape(note[0].upper() + note[1:])}</p></div>'
        )

    def heat_title(self) -> str:
        """What is laid over what."""
        axes = " x ".join(axis for axis in (self.columns, self.rows) if axis)
        return f"{axes}, for each {self.panels}" if self.panels else axes

    def heat_maps(self) -> str:
        """Figure 4 of the paper: one map for each value of `panels`, with one scale of colours for all."""
        if not self.columns:
            return ""
        panels = ordered(self.table.axes[self.panels]) if self.panels else [None]
        grids = [(panel, self.grid(panel)) for panel in panels]
        drawn = [(panel, grid) for panel, grid in grids if np.isfinite(grid).any()]
        empty = [label(panel) for panel, grid in grids if not np.isfinite(grid).any()]
        if not drawn:
            return ""
        values = np.concatenate([grid.ravel() for _, grid in drawn])
        limits = float(np.nanmin(values)), float(np.nanmax(values))
        cards = "".join(self.heat_map(panel, grid, limits) for panel, grid in drawn)
        caption = self.heat_caption()
        if empty:
            caption += f" Nothing is finished of {', '.join(empty)}."
        return f'<div class="maps">{cards}</div><p class="soft caption">{escape(caption)}</p>'

    def grid(self, panel: Any) -> np.ndarray:
        """Cell values, float [rows, columns]; NaN where nothing is finished."""
        assert self.columns
        inside = where(self.settings, self.panels, panel)
        rows = ordered(self.table.axes[self.rows]) if self.rows else [None]
        columns = ordered(self.table.axes[self.columns])
        values = np.full((len(rows), len(columns)), math.nan)
        for i, row in enumerate(rows):
            for j, value in enumerate(columns):
                means = [s.mean for s in where(where(inside, self.rows, row), self.columns, value)]
                if means:
                    choose: Callable[..., Any] = min if self.lower else max
                    values[i, j] = choose(means) if self.others == "best" else np.mean(means)
        return values

    def heat_map(self, panel: Any, grid: np.ndarray, limits: tuple[float, float]) -> str:
        """One map in its card."""
        assert self.columns
        rows = [label(v) for v in ordered(self.table.axes[self.rows])] if self.rows else [""]
        columns = [label(v) for v in ordered(self.table.axes[self.columns])]
        title = label(panel) if self.panels else ""
        cells = "; ".join(
            f"{self.rows} {rows[i]}: " * bool(self.rows)
            + ", ".join(
                f"{columns[j]} {figures.number(float(v), self.percent) or 'none'}" for j, v in enumerate(line)
            )
            for i, line in enumerate(grid)
        )
        svg = figures.heat_map(
            self.key(),
            grid,
            rows,
            columns,
            limits=limits,
            percent=self.percent,
            lower=self.lower,
            axes=(self.rows or "", self.columns),
            label=f"{self.metric} of {title or 'all settings'}. {cells}",
        )
        head = f"<h3>{escape(title)}</h3>" if title else ""
        width = float(svg.split('viewBox="', 1)[1].split()[2])  # in points; few cells are not to fill a card
        return f'<figure class="card">{head}<div style="max-width:{1.45 * width:.0f}px">{svg}</div></figure>'

    def heat_caption(self) -> str:
        """What stands in a cell."""
        unit = " in percent" if self.percent else ""
        text = f"{self.metric}{unit}, {self.value} value, mean over the finished seeds of a setting."
        shown = (self.panels, self.rows, self.columns)
        rest = [axis for axis in self.table.varying if axis not in shown]
        if rest:
            what = "the best of" if self.others == "best" else "the mean over"
            text += f" A cell is {what} the finished settings that differ in {', '.join(rest)}."
        text += " One scale of colours for all; the best of a map is framed, a dash is not finished."
        return text

    def compute(self) -> str:
        """Score over what training cost, with the Pareto front."""
        for name, text, unit in advise.COSTS:
            costs = [setting.cost(name) for setting in self.settings]
            if sum(not math.isnan(cost) for cost in costs) >= max(1, len(costs) / 2):
                note = (
                    "3 x 2 x multiply-accumulates of the forward pass x images seen."
                    if name == "training_flops"
                    else "Training FLOPs are not known for most trials."
                )
                return self.scatter(costs, f"{text}, {unit}" if unit != text else unit, note, False)
        return '<p class="soft">Neither FLOPs nor device-hours nor parameters are known: no figure.</p>'

    def speed(self) -> str:
        """Score over inference speed, with the Pareto front."""
        speeds = self.speeds
        if speeds is None or not speeds.by_trial:
            why = next(iter(speeds.missing.values()), "") if speeds else ""
            text = f"Inference speed was not measured{': ' + why if why else ''}."
            return f'<p class="soft">{escape(text)} `report` without --no-speed measures it.</p>'
        rates = [self.rate(setting) for setting in self.settings]
        note = f"Forward pass, {speeds.batch_size} images a call, on one {speeds.device}; from {SPEED_FILE}."
        if speeds.missing:
            name, why = next(iter(speeds.missing.items()))
            note += f" Not measured: {len(speeds.missing)} trials, such as {name}: {why}"
        return self.scatter(rates, f"inference, images/s ({speeds.device})", note, True)

    def rate(self, setting: Setting) -> float:
        """Inference speed of a setting in images a second; NaN if unknown."""
        known = self.speeds.by_trial if self.speeds else {}
        rates = [known[row["name"]] for row in setting.rows if row["name"] in known]
        return float(np.mean(rates)) if rates else math.nan

    def scatter(self, x: Sequence[float], x_label: str, note: str, more_is_better: bool) -> str:
        """Every setting as a point with its seeds' deviation; the front is drawn and listed."""
        known = [i for i, value in enumerate(x) if not math.isnan(value) and value > 0]
        if not known:
            return f'<p class="soft">{escape(x_label)}: not known of any finished setting.</p>'
        settings = [self.settings[i] for i in known]
        sign = -1 if self.lower else 1
        costs = [-x[i] if more_is_better else x[i] for i in known]
        front = pareto_front(costs, [sign * s.mean for s in settings])
        by_x = sorted(front, key=lambda i: x[known[i]])
        series = [
            figures.Series(
                [x[known[i]] for i in inside],
                [settings[i].mean for i in inside],
                [settings[i].deviation for i in inside],
            )
            for _, inside in self.by_panel(settings)
        ]
        names = (
            [label(value) * bool(inside) for value, inside in self.by_panel(settings)] if self.panels else []
        )
        listed = "; ".join(self.named(settings[i]) for i in by_x)
        svg = figures.scatter(
            self.key(),
            series,
            figures.Series(
                [x[known[i]] for i in by_x],
                [settings[i].mean for i in by_x],
                names=once([label(settings[i].axes[self.panels]) for i in by_x]) if self.panels else (),
            ),
            x_label=x_label,
            y_label=self.metric_label,
            percent=self.percent,
            lower=self.lower,
            more_is_better=more_is_better,
            label=f"{self.metric} against {x_label}, {len(settings)} settings. Pareto front: {listed}.",
        )
        rows = [(self.named(settings[i]), f"{x[known[i]]:.4g}", self.show(settings[i].mean)) for i in by_x]
        front_table = html_table(("on the Pareto front", x_label, self.metric or ""), rows, 1)
        caption = f"A point is a setting, bars are one standard deviation over its seeds. {note}"
        if self.panels:
            caption += f" Named is the {self.panels} of the settings on the Pareto front."
        if len(known) < len(x):
            caption += f" {len(x) - len(known)} settings are left out, where it is not known."
        return (
            f'<div class="card"><figure>{svg}{legend(names)}'
            f'<figcaption class="caption">{escape(caption)}</figcaption></figure>'
            f"<details><summary>On the front: {len(by_x)} of {len(settings)} settings</summary>"
            f'<div class="scroll">{front_table}</div></details></div>'
        )

    def by_panel(self, settings: Sequence[Setting]) -> list[tuple[Any, list[int]]]:
        """Indices of the settings by their value of `panels`, those without any left out of none."""
        if not self.panels:
            return [(None, list(range(len(settings))))]
        values = ordered(self.table.axes[self.panels])
        return [
            (value, [i for i, s in enumerate(settings) if s in where([s], self.panels, value)])
            for value in values
        ]

    def named(self, setting: Setting) -> str:
        """A setting by the axes that vary."""
        return describe(setting, self.table.varying) or setting.name

    # Tables

    def best_settings(self) -> str:
        """The best setting for each value of `panels`, or overall."""
        assert self.evidence
        axes = [axis for axis in self.table.varying if axis != self.panels]
        head = [self.panels or "", *axes, self.metric or "", "seeds", "of settings"]
        costs = [("GMACs", "gmacs_per_image"), ("parameters", "num_params"), ("device-hours", "device_hours")]
        head += [name for name, _ in costs] + ["inference images/s"]
        rows = []
        for value, inside in self.by_panel(self.settings):
            if not inside:
                continue  # the heat maps say what is missing
            top = best([self.settings[i] for i in inside], self.lower)
            spread = "" if math.isnan(top.deviation) else f" ± {self.evidence.signed(top.deviation)[1:]}"
            numbers = [self.show(top.mean) + spread, str(len(top.scores)), str(len(inside))]
            cells = [si(top.cost(name)) for _, name in costs] + [si(self.rate(top))]
            first = label(value) if self.panels else "all"
            rows.append((first, *(label(top.axes[axis]) for axis in axes), *numbers, *cells))
        caption = (
            f"Mean of {self.metric_label} over seeds ± their standard deviation. Picked as the best of the "
            "settings that are finished, so its own mean flatters it by what chance did."
        )
        return (
            f'<div class="card"><div class="scroll">{html_table(head, rows, 1 + len(axes))}</div>'
            f'<p class="soft caption">{escape(caption)}</p></div>'
        )

    def effects(self) -> str:
        """The metric over the values of every axis."""
        charts = []
        for axis in self.table.varying:
            values = [v for v in ordered(self.table.axes[axis]) if where(self.settings, axis, v)]
            if len(values) < 2:
                continue
            points = [[s.mean for s in where(self.settings, axis, v)] for v in values]
            labels = [label(value) for value in values]
            means = ", ".join(
                f"{n} {self.show(float(np.mean(p)))}" for n, p in zip(labels, points, strict=True)
            )
            svg = figures.effect(
                self.key(),
                values,
                labels,
                points,
                percent=self.percent,
                lower=self.lower,
                label=f"{self.metric} by {axis}, means: {means}"
                if len(means) < 2000
                else f"{self.metric} by {axis}",
            )
            charts.append(f'<figure class="card curve"><h3>{escape(axis)}</h3>{svg}</figure>')
        caption = (
            f"{self.metric_label}: every finished setting as a dot, their mean as a line. Where a grid is "
            "not whole, the means are over different settings; the paired comparisons above are not."
        )
        grid = f'<div class="grid">{"".join(charts)}</div><p class="soft caption">{escape(caption)}</p>'
        return grid if charts else ""

    def seeds(self) -> str:
        """How the seeds of the best settings scatter."""
        assert self.evidence
        if not self.evidence.freedom:
            return (
                '<p class="soft">One seed of each setting is finished: what chance does cannot be told.</p>'
            )
        sign, spread = 1 if self.lower else -1, self.evidence.signed
        chosen: list[tuple[int, Setting]] = []
        for index, (_, inside) in enumerate(self.by_panel(self.settings)):
            top = sorted((self.settings[i] for i in inside), key=lambda s: sign * s.mean)
            few = FEW if self.panels else MAX_SPREAD
            chosen += [(index, s) for s in top if len(s.scores) > 1][:few]
        left_out = max(0, len(chosen) - MAX_SPREAD)
        chosen = chosen[:MAX_SPREAD]
        names = [self.named(s) for _, s in chosen]
        svg = figures.spread(
            self.key(),
            names,
            [[score for _, score in s.scores] for _, s in chosen],
            colors=[index for index, _ in chosen],
            x_label=self.metric_label,
            percent=self.percent,
            label=f"Seeds of {len(chosen)} settings: "
            + "; ".join(
                f"{n} {self.show(s.mean)} ± {spread(s.deviation)[1:]}"
                for n, (_, s) in zip(names, chosen, strict=True)
            ),
        )
        of = f"the best {FEW} settings of each {self.panels}" if self.panels else "the best settings"
        points = " percentage points" if self.percent else ""
        caption = (
            f"{of[0].upper()}{of[1:]} with more than one finished seed: each seed a line, with mean and "
            f"standard deviation. Pooled over all settings, seeds deviate by "
            f"{spread(self.evidence.deviation)[1:]}{points} ({self.evidence.freedom} degrees of freedom)."
        )
        caption += f" {left_out} settings more are not shown." if left_out else ""
        return (
            f'<figure class="card">{svg}<figcaption class="caption">{escape(caption)}</figcaption></figure>'
        )

    def failed(self) -> str:
        """Failed trials with the end of their logs."""
        parts = []
        for row in self.table.rows:
            if row["status"] == "failed":
                log = log_end(self.workdir / TRIALS / row["name"] / LOG_FILE)
                body = f"<pre>{escape(log)}</pre>" if log else '<p class="soft">It left no log.</p>'
                tries = f" after {row['attempts']} attempts" if (row["attempts"] or 0) > 1 else ""
                error = f": {row['error']}" if row["error"] else ""
                head = f"<b>{escape(row['name'])}</b>{tries}{escape(error)}"
                parts.append(f'<details class="card"><summary>{head}</summary>{body}</details>')
        return "".join(parts)

    def trials(self) -> str:
        """Every trial in a table that a click on a head sorts; what is the same in all stands above it."""
        shown = [name for name in self.table.columns if name not in ("group", "git_dirty")]
        cells = {name: [row[name] for row in self.table.rows] for name in shown}
        empty = [name for name in shown if all(value is None for value in cells[name])]
        swept = [column(axis) for axis in self.table.axes]
        common = {
            name: cell(next(value for value in values if value is not None))
            for name, values in cells.items()
            if name not in ("name", "status", "error", *empty)
            and len(values) > 1
            and len({cell(value) for value in values if value is not None or name in swept}) == 1
        }
        columns = [name for name in shown if name not in common and name not in empty]
        head = "".join(
            f'<th scope="col"{" class=number" if numeric(cells[name]) else ""}>'
            f'<button type="button">{escape(name)}</button></th>'
            for name in columns
        )
        body = "".join(
            "<tr>" + "".join(td(row[name], numeric(cells[name])) for name in columns) + "</tr>"
            for row in self.table.rows
        )
        note = "; ".join(f"{name} {value}" for name, value in common.items())
        note = f"The same wherever it is known: {note}." if note else ""
        note += f" Not known of any: {', '.join(empty)}." if empty else ""
        return (
            f'<p class="soft caption">{escape(note)} All digits are in table.csv and table.parquet.</p>'
            f'<div class="card scroll trials"><table class="sortable"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
