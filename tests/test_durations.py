import ml_collections
import pytest

from vitjax import durations
from vitjax.errors import UserError

SIZES = {"batch_size": 4096, "num_examples": 1_268_355, "total_steps": 1000}


@pytest.mark.parametrize(
    ("section", "steps"),
    [
        ({"total_epochs": 300}, 92_897),  # AugReg on ImageNet-1k without its last percent
        ({"total_epochs": 90}, 27_869),
        ({"total_steps": 17}, 17),
        ({"total_steps": 0}, 0),
        ({"total_examples": 4096 * 10 + 4095}, 11),
        ({"total_examples": 1}, 1),  # rounds to 0, but is not 0
        ({"total_epochs": 0}, 0),
        ({"total_percent": 0.1}, 100),
        ({"total_percent": 1.0}, 1000),
        ({"total_percent": 1e-9}, 1),
        ({"total_epochs": None, "total_steps": 3}, 3),
    ],
)
def test_each_unit_becomes_steps(section, steps):
    assert durations.steps(section, "total", **SIZES) == steps
    assert durations.steps(ml_collections.ConfigDict(section), "total", **SIZES) == steps


def test_default_is_for_absent_durations_only():
    assert durations.steps({"warmup_steps": 0}, "warmup", **SIZES, default=None) == 0
    assert durations.steps({"ckpt_dir": "x", "log_training_steps": 5}, "log", **SIZES, default=None) is None
    with pytest.raises(UserError, match="warmup_steps, warmup_epochs, warmup_examples, warmup_percent"):
        durations.steps({}, "warmup", **SIZES)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"log_steps": 1, "log_epochs": 2}, "log_steps=1 and log_epochs=2"),
        ({"log_step": 1}, "Did you mean 'log_steps'"),
        ({"log_hours": 1}, "log_hours=1 is not a duration"),
        ({"log_steps": -1}, "log_steps=-1"),
        ({"log_steps": True}, "log_steps=True"),
        ({"log_epochs": "3"}, "log_epochs='3'"),
        ({"log_epochs": float("nan")}, "log_epochs=nan"),
        ({"log_percent": 5}, "between 0 and 1"),
    ],
)
def test_mistakes_name_the_key(section, message):
    with pytest.raises(UserError, match=message):
        durations.steps(section, "log", **SIZES)


def test_unknown_sizes_are_named():
    with pytest.raises(UserError, match="num_examples"):
        durations.steps({"log_epochs": 1}, "log", batch_size=8, num_examples=None, total_steps=1)
    with pytest.raises(UserError, match="total_steps"):
        durations.steps({"log_percent": 0.5}, "log", batch_size=8, num_examples=8, total_steps=None)


def test_a_missing_length_is_not_said_to_be_a_share_of_itself():
    with pytest.raises(UserError, match=r"set one of total_steps, total_epochs, total_examples\.$"):
        durations.steps({}, "total", batch_size=64, num_examples=100, total_steps=None)
