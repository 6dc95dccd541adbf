"""The page of a sweep: every figure and trial, self-contained, escaped, whatever is missing."""

import argparse
import base64
import hashlib
import html.parser
import re
import subprocess
import sys

import numpy as np
import pytest
from made_up_sweep import RUN, finished, whole_sweep, write_sweep, write_trial

from vitjax.errors import UserError
from vitjax.sweep import figures, markup, report
from vitjax.sweep.table import read_table

VOID = {"meta", "img", "br", "link", "input"}
EVIL = '"><script>alert(1)</script>$title${x}&amp;'


class Page(html.parser.HTMLParser):
    """Collects text, attributes and ids; every tag has to be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.tags, self.text, self.spoken = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [attrs[name] for name in ("src", "href", "xlink:href", "srcset") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "svg":
            self.spoken.append(attrs.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make(folder, *argv):
    """Runs the command without measuring speed; returns the page's text and the parsed page."""
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    args = parser.parse_args(["--no-speed", *argv])
    args.workdir = folder
    assert report.run(args) == 0
    source = (folder / "report.html").read_text()
    page = Page(source)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\((?!#)", source)
    assert page.tags.count("script") == 1 and not {"link", "iframe", "object", "base", "img"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert all(page.spoken), "a picture without words"
    return " ".join(" ".join(page.text).split()), page


AXES = {"model": ("vit_s16", "vit_b16"), "aug": ("medium1", "none", "light1"), "reg": (0.1, 0.0)}


def score(seed, model, aug, reg):
    return 0.6 + 0.1 * (model == "vit_b16") + {"none": 0, "light1": 0.05, "medium1": 0.03}[aug] - reg / 10


def with_seeds(seed, **axes):
    return score(seed, **axes) + 0.002 * seed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return whole_sweep(tmp_path_factory.mktemp("sweep"), with_seeds, AXES)


def test_a_whole_page(whole):
    text, page = make(whole)
    for expected in (
        "started 2026-03-01 10:00 UTC · 4 NVIDIA H200 · ababababab",
        "Trials done 24 of 24 nothing is left",
        "Best val/prec@1 75.10% model vit_b16, aug light1, reg 0",
        "Settings 12 2 seeds",
        "Device-hours 96 of 24 trials",
        "aug x reg, for each model",
        "One scale of colours for all",
        "Accuracy against compute",
        "training compute, FLOPs",
        "Inference speed was not measured.",
        "vit_s16 light1 0 65.10% ± 0.14 2 6 2 5 M 4 -",
        "Each axis",
        "seeds deviate by 0.14 percentage points (12 degrees of freedom)",
        "aug : light1 is best on average: +5.00 +/- 0.00 (n=4 pairs) over none",
        "The same wherever it is known: attempts 1; final val/loss 3;",
    ):
        assert expected in text, expected
    for row in read_table(whole).rows:
        assert text.count(row["name"]) == 1
    # Two heat maps, compute, three axes, seeds.
    assert len(page.spoken) == 7
    assert page.spoken[0] == (
        "val/prec@1 of vit_s16. reg 0: none 60.1, light1 65.1, medium1 63.1; "
        "reg 0.1: none 59.1, light1 64.1, medium1 62.1"
    )
    assert "Failed trials" not in text and "Figures show" not in text
    assert (whole / "table.csv").exists() and (whole / "table.parquet").exists()
    assert (whole / "report.html").stat().st_size < 250_000


def test_the_only_script_is_the_page_s_own(whole):
    make(whole)
    source = (whole / "report.html").read_text()
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in source


def test_numbers_sort_by_all_their_digits(whole):
    make(whole)
    assert f'data-v="{score(0, "vit_s16", "none", 0.0)!r}">0.6<' in (whole / "report.html").read_text()


def test_any_two_axes(whole):
    text, page = make(whole, "--rows=model", "--columns=reg", "--panels=aug", "--others=mean")
    assert "reg x model, for each aug" in text
    assert page.spoken[0].startswith("val/prec@1 of none. model vit_s16: 0 60.1, 0.1 59.1; model vit_b16")
    text, page = make(whole, "--rows=model", "--columns=reg", "--panels=aug", "--value=best")
    assert "reg x model, for each aug" in text and "val/prec@1 in percent, best value" in text


def test_a_cell_of_several_settings_is_their_best_or_their_mean(tmp_path):
    folder = whole_sweep(
        tmp_path, lambda seed, aug, reg, lr: lr, {"aug": (1, 2), "reg": (0, 1), "lr": (0.2, 0.4)}
    )
    text, page = make(folder)
    assert "A cell is the best of the finished settings that differ in lr." in text
    assert page.spoken[0] == "val/prec@1 of all settings. reg 0: 1 40.0, 2 40.0; reg 1: 1 40.0, 2 40.0"
    text, page = make(folder, "--others=mean")
    assert "A cell is the mean over the finished settings that differ in lr." in text
    assert page.spoken[0].endswith("reg 1: 1 30.0, 2 30.0")


def test_wrong_axes_are_refused(whole):
    with pytest.raises(UserError, match=r"--rows rg: .* Did you mean 'reg'\? There are: model, aug, reg"):
        make(whole, "--rows=rg")
    with pytest.raises(UserError, match="'aug' is asked for twice"):
        make(whole, "--rows=aug", "--columns=aug")
    with pytest.raises(UserError, match=r"--metric val/prec: .* Did you mean 'val/prec@1'\?"):
        make(whole, "--metric=val/prec")
    with pytest.raises(UserError, match="--speed-batch 0"):
        make(whole, "--speed-batch=0")


def test_half_a_sweep(tmp_path):
    names = write_sweep(tmp_path, [({"model": m, "aug": a}, s) for m in "abc" for a in "xy" for s in (0, 1)])
    for name in names[:3]:
        write_trial(tmp_path, name, finished(0.5))
    log = "old\n" * 100 + "10%\r20%\r30%\n\x1b[31mOut of memory\x1b[0m <b>\n\n"
    write_trial(tmp_path, names[4], [], status="failed", attempts=3, error="OOM & <i>", log=log)
    other = RUN | {"git": {"revision": "cd" * 20, "dirty": True}, "devices": [{"kind": "TPU", "count": 1}]}
    write_trial(tmp_path, names[5], finished(0.9)[:2], status="running", run=other)
    write_trial(tmp_path, names[6], [{"step": 9, "val/prec@1": None}])
    text, page = make(tmp_path)
    for expected in (
        "Trials done 4 of 12 1 running, 1 failed, 6 pending",
        "Figures show the 4 finished trials of 12",
        "may also have been killed",
        "1 finished trials have no finite val/prec@1",
        "several revisions",
        "different devices",
        "Nothing is finished of b, c.",
        "model_b-aug_x-seed_0 after 3 attempts: OOM & <i>",
        "old 30% Out of memory <b>",
        "Best val/prec@1 50.00% model a, aug x",
    ):
        assert expected in text, expected
    assert "20%" not in text and text.count("old") == markup.LOG_LINES - 2
    assert page.spoken[0] == "val/prec@1 of a. x 50.0, y 50.0"
    for row in read_table(tmp_path).rows:
        assert row["name"] in text


def test_nothing_finished_and_no_metric(tmp_path):
    name, other = write_sweep(tmp_path, [({"lr": x}, 0) for x in (0.1, 0.2)])
    text, page = make(tmp_path)
    assert "No trial has an evaluation metric so far" in text and "Trials done 0 of 2 2 pending" in text
    write_trial(tmp_path, name, finished(0.5), status="running")
    text, page = make(tmp_path)
    assert "No finished trial has measured val/prec@1" in text and not page.spoken
    write_trial(tmp_path, other, finished(0.5), run={})
    text, page = make(tmp_path)  # one setting, one seed, nothing known of its cost
    assert "One seed of each setting is finished" in text
    assert "Neither FLOPs nor device-hours nor parameters are known" in text


def test_one_trial_without_axes(tmp_path):
    name, *_ = write_sweep(tmp_path, [({}, 0)])
    write_trial(tmp_path, name, finished(0.5))
    text, page = make(tmp_path)
    assert "Trials done 1 of 1" in text and "all 50.00%" in text and len(page.spoken) == 1


def test_a_random_search_has_no_heat_map_of_hundreds_of_cells(tmp_path):
    rng = np.random.default_rng(0)
    points = [({"lr": float(lr), "aug": aug}, 0) for lr in rng.uniform(1e-4, 1e-2, 60) for aug in ("none",)]
    for name in write_sweep(tmp_path, points):
        write_trial(tmp_path, name, finished(0.5 + 0.1 * rng.random()))
    text, page = make(tmp_path)
    assert len(page.spoken) == 2  # compute, and the effect of lr on a scale
    assert "One scale of colours" not in text


def test_a_loss_is_better_below(tmp_path):
    names = write_sweep(tmp_path, [({"aug": a}, s) for a in ("none", "light1") for s in (0, 1)])
    for name, loss in zip(names, (1.0, 1.2, 0.5, 0.7), strict=True):
        write_trial(tmp_path, name, finished(0.5, **{"val/loss": loss}))
    text, page = make(tmp_path, "--metric=val/loss")
    assert "Best val/loss 0.6 aug light1" in text and "Score against compute" in text
    assert any(spoken.endswith("2 settings. Pareto front: aug light1.") for spoken in page.spoken)


def colors(svg):
    """Colours of a heat map's cells, from left to right."""
    return re.findall(r"fill: (#[0-9a-f]{6})", svg)


def colormap_middle():
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["viridis"](0.5))


@pytest.mark.parametrize("lower", [False, True])
def test_the_same_value_has_the_same_colour_on_every_map(lower):
    def cells(*values):
        options = dict(limits=(1.0, 5.0), percent=False, lower=lower, axes=("r", "c"), label="x")
        names = [str(value) for value in values]
        return colors(figures.heat_map("k", np.array([values]), ["r"], names, **options))

    worst, best = ("#fde725", "#440154") if lower else ("#440154", "#fde725")  # the ends of viridis
    assert worst in cells(1.0, 3.0) and best in cells(3.0, 5.0)
    middle = set(cells(3.0, 3.0)) & set(cells(3.0, 5.0)) - {"#ffffff", "#000000"}
    assert middle == {colormap_middle()}


def test_hostile_names_and_logs_are_text(tmp_path):
    axes = {"model": EVIL, EVIL: EVIL, "aug": "none"}
    names = write_sweep(
        tmp_path, [(axes | {"aug": aug}, s) for aug in ("none", EVIL) for s in (0, 1)], name=EVIL
    )
    source = (tmp_path / "sweep.json").read_text()
    for i, name in enumerate(names):
        source = source.replace(name.replace('"', '\\"'), f"t{i}<u>")  # a name is also a folder's
    (tmp_path / "sweep.json").write_text(source)
    run = RUN | {"git": {"revision": EVIL, "dirty": True}, "devices": [{"kind": EVIL, "count": 1}]}
    for i in range(3):
        write_trial(tmp_path, f"t{i}<u>", finished(0.5 + i / 100), run=run)
    write_trial(tmp_path, "t3<u>", [], status="failed", error=EVIL, log=EVIL)
    text, page = make(tmp_path)
    assert "<script>alert(1)" not in (tmp_path / "report.html").read_text()
    assert text.count("alert(1)") > 10 and "u" not in page.tags


def test_the_end_of_a_log(tmp_path):
    path = tmp_path / "log.txt"
    assert markup.log_end(path) == ""
    path.write_bytes(b"x" * 200_000 + b"\nlast \xff\x00 line\r\n\n")
    shown = markup.log_end(path)
    assert shown.endswith("\nlast � line") and len(shown) < 70_000


def test_the_command_line_is_there_at_once():
    code = "import vitjax.sweep.report, vitjax.sweep.advise, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"jax", "flax", "matplotlib", "scipy", "pyarrow"} & set(loaded.split())


def test_axes_are_chosen_by_role_then_by_what_varies():
    table = lambda **axes: argparse.Namespace(
        axes=axes, varying=[name for name, values in axes.items() if len(values) > 1]
    )
    presets, two = ["none", "light1"], [1, 2]
    choose = lambda axes, **asked: report.choose_axes(
        table(**axes), asked.get("panels"), asked.get("rows"), asked.get("columns")
    )
    paper = dict(model=["a", "b"], wd=two, aug=presets, reg=[0.0, 0.1])
    assert choose(paper) == ("model", "reg", "aug")
    assert choose(paper, rows="wd") == ("model", "wd", "aug")
    assert choose(paper, rows="model") == (None, "model", "aug")
    assert choose(paper, columns="model", panels="aug") == ("aug", "reg", "model")
    assert choose(dict(model=["a", "b"], lr=[1, 2, 3])) == ("model", None, "lr")
    assert choose(dict(lr=[1, 2, 3], b1=two)) == (None, "b1", "lr")
    assert choose(dict(model=["a", "b"])) == (None, None, "model")
    assert choose(dict(model=["a"], lr=[1])) == (None, None, None)


def test_ticks_that_differ_read_differently():
    assert [figures.scientific(x) for x in (500, 12500, 1e12, 1.25e12, 2e-5)] == [
        "500", "12500", "1e12", "1.25e12", "2e-5",
    ]  # fmt: skip
