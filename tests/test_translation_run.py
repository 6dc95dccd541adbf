"""A translation run from raw text to scored translations: trained, stopped, gone on, averaged, asked."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from etils import epath
from made_up_text import pairs, write

from vitjax import average, config, metrics, train, translate
from vitjax.checkpoint_files import read_record
from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError

PROGRAMS = {}
STEPS = 6
CIRCUMSTANCES = ("tokens/sec", "tokens/sec/core", "data_wait", "uptime", "core_hours")
never = lambda step: False


class StopAfter:
    """Asks a run to leave after so many steps."""

    exit_code = 143

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, step):
        return step >= self.steps


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp("text") / "made_up", 120)


@pytest.fixture(scope="module")
def config_of(text):
    """`config_of(key=value)`: the small recipe as a user shortens it, on the made-up languages."""

    def make(**overrides):
        spec = f"configs/translate.py:small,data=multi30k:{text},source=aa,target=bb,vocab=90,batch=8"
        small = {"model.width": 16, "model.depth": 1, "model.mlp_dim": 16, "model.num_heads": 2}
        short = {
            "schedule.warmup_steps": 2,
            "total_steps": STEPS,
            "ckpt_steps": 2,
            "log_training_steps": 1,
        }
        evals = {
            "evals.val.log_steps": 3,
            "evals.test.split": "test",
            "evals.test.beam": 2,
            "evals.test.extra": 4,
        }
        given = small | short | evals | {key.replace("__", "."): v for key, v in overrides.items()}
        return config.load(spec, {key: repr(value) for key, value in given.items()})

    return make


def final(workdir):
    return read_record(epath.Path(workdir / "checkpoints" / str(STEPS)))["leaves"]


def rows(workdir):
    found = metrics.read_metrics(workdir)
    return [{key: value for key, value in row.items() if key not in CIRCUMSTANCES} for row in found]


@pytest.fixture(scope="module")
def trained(config_of, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    assert train.train(config_of(), workdir, never, PROGRAMS) == 0
    return workdir


def test_a_run_leaves_scores_with_signatures_and_its_translations(trained, text):
    values = {}
    for row in rows(trained):
        values |= row
    assert values["val/perplexity"] > 1 and 0 <= values["test/bleu"] <= 100
    scores = json.loads((trained / "evals/test/scores.json").read_text())
    assert "tok:13a" in scores["scores"]["bleu"]["signature"]
    translations = (trained / "evals/test/translations.txt").read_text().splitlines()
    assert len(translations) == len((text / "test.bb").read_text().splitlines())
    assert 0 <= json.loads((trained / "run.json").read_text())["text"]["padding"] < 0.3


def test_a_stopped_run_goes_on_bit_for_bit(trained, config_of, tmp_path):
    assert train.train(config_of(), tmp_path, StopAfter(3), PROGRAMS) == 143
    assert train.train(config_of(), tmp_path, never, PROGRAMS) == 0
    assert rows(tmp_path) == rows(trained)
    assert final(tmp_path) == final(trained)


def test_a_vocabulary_of_other_text_is_refused(trained, config_of, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained, workdir)
    other = Vocabulary.train([line for pair in pairs(200, seed=9) for line in pair], 90)
    (workdir / "vocabulary.model").write_bytes(other.serialised)
    with pytest.raises(UserError, match=r"text\.vocabulary\.checksum"):
        train.train(config_of(), workdir, never, PROGRAMS)


def test_averaged_checkpoints_translate_line_by_line(trained, monkeypatch):
    assert average.average(trained, 2) == [4, 6]
    source = b"Red tavo sees.\n\nGrand miru bakes luma.\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source)))
    written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", written)
    options = ["--workdir", str(trained / "averaged"), "--beam", "2", "--extra_length", "4"]
    assert translate.main(options) == 0
    lines = written.buffer.getvalue().decode().split("\n")
    assert len(lines) == 4 and lines[1] == "" and lines[3] == ""


def test_learning_goes_down(trained):
    losses = [row["training_loss"] for row in rows(trained) if "training_loss" in row]
    assert len(losses) == STEPS and np.isfinite(losses).all() and losses[-1] < losses[0]
