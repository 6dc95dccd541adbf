"""The report page: whole, self-contained, escaped, and made from whatever is there."""

import html.parser
import json
import re

import numpy as np
import pytest

from vitjax import run_info
from vitjax.analysis import curves, report
from vitjax.analysis import predictions as preds
from vitjax.errors import UserError
from vitjax.metrics import MetricWriter

VOID = {"meta", "img", "br", "link", "input"}


class Page(html.parser.HTMLParser):
    """Collects text, attributes and ids; every tag has to be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.tags, self.text = [], [], [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        self.ids += [value for name, value in attrs if name == "id"]
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


def check(path):
    """Parses a page, which must not load anything."""
    text = path.read_text()
    page = Page(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert len(page.ids) == len(set(page.ids))
    return " ".join(" ".join(page.text).split()), page


def answers(classes=3, count=60, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    top5 = np.stack([rng.permutation(classes)[:5] for _ in range(count)])
    prob = np.sort(rng.dirichlet(np.ones(top5.shape[1]), count))[:, ::-1]
    return {"_id": np.arange(count) + 1000, "label": label, "top5": top5, "top5_prob": prob}


def picture(identity):
    return np.full((8, 8, 3), (identity % 255, 0, 128), np.uint8)


@pytest.fixture
def workdir(tmp_path):
    workdir = tmp_path / "my run"
    with MetricWriter(workdir, tensorboard=False) as writer:
        writer.write(0, {"num_params": 22_050_664})
        for step in range(1, 501):
            writer.write(
                step, {"training_loss": 2 / step, "global_schedule": step / 500, "img/sec/core": 1234.0}
            )
            if step % 100 == 0:
                writer.write(step, {"val/prec@1": 0.9 if step == 400 else 0.8, "val/loss": 0.5})
    (workdir / "config.json").write_text(json.dumps({"seed": 0, "model": {"name": "vit_s32"}}))
    wall = {"compile": 20.0, "step": 60.0, "data wait": 20.0}
    info = {"versions": {"jax": "0.10.2"}, "devices": [{"platform": "gpu", "kind": "H200", "count": 8}]}
    run_info.write_run_info(workdir, info | {"wall_time": wall, "total_steps": 1000, "command": "python <x>"})
    return workdir


def test_a_whole_page(workdir):
    path = report.write_report(
        workdir, predictions=answers(), class_names=("cat", "dog", "emu"), images=picture
    )
    text, page = check(path)
    for expected in (
        "my run",
        "Top-1, val/prec@1 80.00% best 90.00% at step 400",
        "22.1 M 22,050,664",
        "Steps 500 of 1,000: not finished",
        "Wall time 0:01:40 60% of it in training steps",
        "Images/s, median 1,234 each device",
        "Training loss",
        "Learning rate",
        "step 60.0% 0:01:00",
        "emu",
        "Wrong · the surest mistakes first",
        "Right · spread evenly over the split",
        '"name": "vit_s32"',
        "python <x>",
        "0.10.2",
        "8 H200",
    ):
        assert expected in text, expected
    assert sum(link.startswith("data:") for link in page.links) == 24
    assert path.stat().st_size < 400_000


def test_the_page_can_be_made_again_from_the_workdir(workdir, capsys):
    path = report.write_report(
        workdir, predictions=answers(), class_names=("cat", "dog", "emu"), images=picture
    )
    first = path.read_text()
    path.unlink()
    report.main([str(workdir)])
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_text() == first


def test_hostile_names_are_text(tmp_path):
    evil = '"><script>alert(1)</script>$subtitle$'
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {f"{evil}/prec@1": 0.5, "training_loss": 1.0})
    run_info.write_run_info(
        tmp_path,
        {
            "versions": {evil: evil},
            "command": evil,
            "started": evil,
            "git": {"revision": evil, "dirty": True},
            "devices": [{"platform": evil, "kind": evil, "count": 1}],
            "wall_time": {evil: 1.0},
        },
    )
    (tmp_path / "config.json").write_text(json.dumps({evil: evil}))
    path = report.write_report(tmp_path, predictions=answers(), class_names=[evil] * 3, images=picture)
    text, _ = check(path)
    assert "alert(1)" in text and "<script" not in path.read_text()
    path = report.write_report(tmp_path, predictions=answers(60, 500), class_names=[evil] * 60)
    check(path)


def test_many_classes_show_the_most_confused_pairs(tmp_path):
    arrays = answers(100, 400)
    arrays["label"][:50], arrays["top5"][:50, 0] = 7, 9
    text, _ = check(
        report.write_report(tmp_path, predictions=arrays, class_names=[f"c{i}" for i in range(100)])
    )
    assert "Most confused true class answer examples of class c7 c9 50" in text
    assert "Hardest classes" in text and "100 classes" in text


@pytest.mark.parametrize(
    "values", [{}, {"training_loss": 6.9}, {"training_loss": float("nan"), "val/prec@1": float("nan")}]
)
def test_one_step_only(tmp_path, values):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"num_params": 5} | values)
    text, _ = check(report.write_report(tmp_path))
    assert "Steps 1" in text and "Confusion" not in text


def test_unlabelled_examples_and_few_classes(tmp_path):
    arrays = answers(2, 20)
    arrays["label"][:10] = -1
    text, _ = check(
        report.write_report(tmp_path, predictions=arrays, images=lambda _: np.zeros((300, 200), np.uint8))
    )
    assert "10 examples" in text
    assert max(len(png) for png in preds.load(tmp_path).thumbnails.values()) < 2000


def test_nothing_to_report_on(tmp_path, capsys):
    with pytest.raises(UserError, match="nothing to report on"):
        report.write_report(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path)])
    assert capsys.readouterr().err.startswith("error: There is nothing")


def test_damaged_files_are_passed_over(workdir):
    for name in ("run.json", "predictions.npz", "config.json"):
        (workdir / name).write_text('{"torn')
    text, _ = check(report.write_report(workdir))
    assert '{"torn' in text  # the config is shown as it is


def test_counts():
    arrays = {
        "_id": np.arange(5),
        "label": np.array([0, 0, 0, 1, 1]),
        "top5": np.array([[0, 1], [1, 0], [1, 0], [1, 0], [1, 0]]),
        "top5_prob": np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.5, 0.5]]),
    }
    found = preds.from_arrays(arrays, ())
    assert found.accuracy() == 0.6 and found.accuracy(2) == 1.0
    assert preds.confusion_matrix(found).tolist() == [[1, 2], [0, 2]]
    assert preds.most_confused(found) == [(0, 1, 2, 2 / 3)]
    assert preds.hardest_classes(found) == [(0, 3, 1 / 3), (1, 2, 1.0)]
    wrong, right = preds.choose_examples(found, count=2)
    assert wrong.tolist() == [2, 1] and right.tolist() == [0, 4]
    with pytest.raises(ValueError, match="do not belong together"):
        preds.from_arrays(arrays | {"label": np.zeros(4, int)}, ())


def test_curves_are_thinned_and_smoothed_without_lag():
    steps, values = np.arange(10_000.0), np.arange(10_000.0) * 2
    thin_steps, thin_values = curves.thin(steps, values)
    assert len(thin_steps) == curves.MAX_POINTS and thin_steps[-1] == 9999
    smoothed = curves.smooth(thin_values)
    np.testing.assert_allclose(smoothed[50:-50], thin_values[50:-50])
    values[5] = np.inf
    assert np.isnan(curves.thin(steps, values)[1][0]) and np.isnan(
        curves.smooth(curves.thin(steps, values)[1])[0]
    )
