"""The small study of distillation: each way of teaching is the one that its name says."""

import pytest

from vitjax import config
from vitjax.errors import UserError
from vitjax.sweep import trials


@pytest.mark.parametrize(
    ("what", "model", "kind"),
    [("none", "deit_mu7", None), ("soft", "deit_mu7", "soft"), ("token", "deit_mu7_distilled", "token")],
)
def test_students(what, model, kind):
    found = config.load(f"configs/distill_small.py:{what},teacher=runs/teacher")
    assert found.model.name == model and found.task.get("kind") == kind
    assert (kind is None) == ("teacher" not in found.task)


def test_the_teacher_and_a_student_without_one():
    assert config.load("configs/distill_small.py:resnet18").model.name == "resnet18"
    with pytest.raises(UserError, match="hard needs a teacher"):
        config.load("configs/distill_small.py:hard")


def test_the_sweep_has_every_way_and_seed():
    plan = trials.read("configs/sweeps/distill_small.py:runs/teacher,seeds=2")
    assert sorted(plan.trials) == sorted(
        f"what_{what}-seed_{seed}" for what in ("none", "soft", "hard", "token") for seed in (0, 1)
    )
