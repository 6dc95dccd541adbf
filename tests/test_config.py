"""Config files, overrides, and what is refused."""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import pytest

from configs import common
from vitjax import config
from vitjax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
AUGREG = "configs/augreg.py"


@pytest.mark.parametrize(
    ("spec", "overrides", "says"),
    [
        (AUGREG, {"lrr": "1"}, "unknown config key 'lrr' (set by --config.lrr=1). Did you mean 'lr'?"),
        (AUGREG, {"lr": "fast"}, "--config.lr=fast: expected float"),
        (AUGREG, {"lr": "None.5"}, "expected float"),
        (AUGREG, {"opt.b1": "0.9"}, "no config section 'opt'. Did you mean 'optax'?"),
        (AUGREG, {"lr.peak": "0.9"}, "'lr' is a value, not a section"),
        (f"{AUGREG}:vit_s32,agu=light1", {}, "unknown argument 'agu'. Did you mean 'aug'?"),
        (f"{AUGREG}:vit_s32,aug=lite1", {}, "unknown aug 'lite1'. Did you mean 'light1'?"),
        (f"{AUGREG}:vit_s32,rep=maybe", {}, "argument rep=maybe must be of type bool"),
        (f"{AUGREG}:vit_s32,res=big", {}, "argument res=big must be of type int"),
        (f"{AUGREG}:vit_s32,lr=1,lr=2", {}, "argument 'lr' is given twice"),
        ("configs/quickstart.py:vit_s32", {}, "takes no argument"),
        (
            "configs/augreggg.py",
            {},
            "no config file 'configs/augreggg.py'. Did you mean 'configs/augreg.py'?",
        ),
    ],
)
def test_a_mistake_is_one_sentence(spec, overrides, says):
    with pytest.raises(UserError, match=re.escape(says)) as error:
        config.load(spec, overrides)
    assert "\n" not in str(error.value)


def write(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict()\n    {body}\n"
    )
    return str(path)


def test_a_key_of_the_file_that_nobody_reads_is_refused(tmp_path):
    path = write(tmp_path, "c.weight_decay = 1; return c")
    with pytest.raises(UserError, match=re.escape(f"unknown config key 'weight_decay' (set by {path})")):
        config.load(path)


def test_two_units_of_one_duration_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"total_steps and total_epochs.*say the same"):
        config.load(write(tmp_path, "c.total_steps = 1; c.total_epochs = 2; return c"))


@pytest.mark.parametrize("body", ["c.a.b = 1", "return c +", "import nowhere", "raise ValueError('no')"])
def test_a_broken_file_names_itself(tmp_path, body):
    with pytest.raises(UserError, match=r"mine\.py"):
        config.load(write(tmp_path, body))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("pass", "must return an ml_collections.ConfigDict, not NoneType"),
        ("return dict(lr=1)", "must return an ml_collections.ConfigDict, not dict"),
        ("raise KeyError('a')", "mine.py', line 4 fails: KeyError a"),
        ("assert False", "mine.py', line 4 fails: AssertionError"),
        ("return c +", "mine.py', line 4 fails: invalid syntax"),
    ],
)
def test_a_file_that_returns_no_config_or_says_little_is_told_of_in_full(tmp_path, body, says):
    with pytest.raises(UserError, match=re.escape(says)):
        config.load(write(tmp_path, body))


def test_a_type_is_named_as_a_whole():
    def reader(*, shots: Sequence[int], datasets: Mapping[str, Sequence[str]], rate: float | None = None):
        pass

    for section, says in (
        ({"shots": 3}, "it must be a tuple."),
        ({"datasets": 3}, "it must be a section, dict(...)."),
        ({"rate": "x"}, "it must be float or None."),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            config.bind(reader, section, "fewshot")


@pytest.mark.parametrize(
    ("there", "splits"),
    [
        (["cat", "dog"], ("train[:90%]", "train[90%:]")),
        (["train", "val"], ("train", "val")),
        (["train", "test", "validation"], ("train", "validation")),
        (["train"], ("train[:90%]", "train[90%:]")),
    ],
)
def test_a_folder_is_evaluated_on_what_it_holds_out(tmp_path, there, splits):
    for name in there:
        (tmp_path / name).mkdir()
    assert common.usual_splits(f"folder:{tmp_path}") == splits
    c = config.load(f"{AUGREG}:vit_ti16,data=folder:{tmp_path}")
    assert (c.input.split, c.evals.val.split) == splits
    c = config.load(f"{AUGREG}:vit_ti16,data=folder:{tmp_path},train=train[:50%],val=train[50%:]")
    assert (c.input.split, c.evals.val.split) == ("train[:50%]", "train[50%:]")
    assert common.usual_splits("digits") == ("train", "test")


def test_an_override_beats_every_unit_of_its_duration():
    assert config.load(AUGREG).total_epochs == 300
    changed = config.load(AUGREG, {"total_steps": "20"})
    assert changed.total_steps == 20 and "total_epochs" not in changed
    changed = config.load(AUGREG, {"evals.val.log_epochs": "2"})
    assert changed.evals.val.log_epochs == 2 and "log_steps" not in changed.evals.val


def test_overrides_keep_types():
    changed = config.load(AUGREG, {"lr": "1", "optax_name": "1", "grad_accum": "4", "model.scan": "true"})
    assert (changed.lr, changed.optax_name, changed.grad_accum, changed.model.scan) == (1.0, "1", 4, True)
    assert isinstance(changed.lr, float)


def test_bind_is_the_schema_of_a_section():
    def reader(*, data, split="train"):
        return data, split

    assert config.bind(reader, {"data": "digits"}, "input") == {"data": "digits"}
    with pytest.raises(UserError, match=r"'input.splt'\. Did you mean 'split'\?"):
        config.bind(reader, {"data": "digits", "splt": "test"}, "input")
    with pytest.raises(UserError, match="'input' lacks data"):
        config.bind(reader, {}, "input")


def test_fingerprint_ignores_what_does_not_touch_training():
    first = config.load(AUGREG, {"evals.val.log_steps": "3", "keep_last": "4", "input.workers": "2"})
    assert config.fingerprint(first) == config.fingerprint(config.load(AUGREG))
    other = config.fingerprint(config.load(AUGREG, {"lr": "0.1"}))
    assert other != config.fingerprint(first) and other["lr"] == 0.1


def test_the_first_bare_word_is_the_model():
    arg = common.parse_arg("vit_b16,res=384,rep", model="vit_s32", res=224, rep=False, aug=None)
    assert (arg.model, arg.res, arg.rep, arg.aug) == ("vit_b16", 384, True, None)
    assert common.parse_arg("rep", model="vit_s32", rep=False).rep is True
    assert common.parse_arg(None, model="vit_s32").model == "vit_s32"


@pytest.mark.parametrize("text, value", [("3", 3), ("3e-4", 3e-4), ("light1", "light1"), ("None", None)])
def test_a_value_without_a_default_is_a_number_if_it_looks_like_one(text, value):
    assert common.parse_arg(f"x={text}", model="m", x=None).x == value


# Augmentation presets: paper section 3.3, table of the reference code's configs.
@pytest.mark.parametrize(
    ("preset", "randaug", "mixup"),
    [
        ("none", None, None),
        ("light1", "randaug(2, 0", None),
        ("light2", "randaug(2, 10", "mixup(0.2)"),
        ("medium1", "randaug(2, 15", "mixup(0.2)"),
        ("medium2", "randaug(2, 15", "mixup(0.5)"),
        ("strong1", "randaug(2, 20", "mixup(0.5)"),
        ("strong2", "randaug(2, 20", "mixup(0.8)"),
    ],
)
def test_augreg_presets(preset, randaug, mixup):
    pp = config.load(f"{AUGREG}:vit_s32,aug={preset}").input.pp
    assert (randaug in pp) if randaug else ("randaug" not in pp)
    assert (mixup in pp) if mixup else ("mixup" not in pp)


def test_augreg_recipe_follows_the_paper():
    c = config.load(f"{AUGREG}:vit_b16,aug=medium2,reg=0.1,wd=0.03")
    assert (c.total_epochs, c.input.batch_size, c.schedule.warmup_steps) == (300, 4096, 10_000)
    assert (c.lr, c.wd, c.grad_clip_norm) == (1e-3, pytest.approx(3e-5), 1.0)
    assert (c.model.dropout, c.model.drop_path, c.model.head_bias) == (0.1, 0.1, -6.9)
    assert c.task.loss == "sigmoid_xent" and c.optax.mu_dtype == "bfloat16"
    assert (c.input.split, c.evals.minival.split) == ("train[:99%]", "train[99%:]")
    big = config.load(f"{AUGREG}:vit_l16,data=i21k,epochs=30")
    assert (big.num_classes, big.model.head_bias, big.model.rep_size, big.total_epochs) == (
        21843,
        -10,
        False,
        30,
    )
    assert "randaug(2, 15" in big.input.pp and "mixup(0.5)" in big.input.pp


def test_common_is_found_from_a_config_file_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(ROOT))])
    for name in ("configs", "configs.common"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = write(
        tmp_path, "from configs import common; c.lr = float(common.parse_arg(None, lr=2.0).lr); return c"
    )
    assert config.load(path).lr == 2.0


def test_an_override_makes_a_section_that_the_config_leaves_out():
    assert config.load("configs/quickstart.py", {"ema.decay": "0.9"}).ema.decay == 0.9
    with pytest.raises(UserError, match=r"no config section 'emma'.*Did you mean 'ema'"):
        config.load("configs/quickstart.py", {"emma.decay": "0.9"})
