"""The recipes of binary networks: what they say is what was published, and they train at a small size."""

import pathlib

import jax
import numpy as np
import pytest

from vitjax import config, experiment, optim
from vitjax.errors import UserError
from vitjax.metrics import read_metrics
from vitjax.preemption import Preempted
from vitjax.sweep import trials
from vitjax.train import train

TAUGHT = "teacher=deit_s16,teacher_weights=x.npz"


def optimizer_of(c, steps_per_epoch):
    params = {"conv1": {"kernel": jax.ShapeDtypeStruct((1, 1, 2, 2), np.float32)}}
    examples = steps_per_epoch * c.input.batch_size
    sizes = dict(total_steps=c.total_epochs * steps_per_epoch, batch_size=c.input.batch_size)
    return optim.create(params, **sizes, num_examples=examples, **experiment.optimizer_section(c))


@pytest.mark.parametrize("model", ["binaryvit_s", "binary_deit_s16_gap", "binaryvit_s_star"])
def test_binaryvit_is_trained_as_published(model):
    c = config.load(f"configs/binaryvit.py:{model},{TAUGHT}")
    assert (c.total_epochs, c.input.batch_size, c.model.to_dict()) == (300, 512, dict(name=model))
    assert (c.task.name, c.task.kind) == ("distill", "teacher_only") and "alpha" not in c.task
    assert "wd" not in c and "ema" not in c and "grad_clip_norm" not in c and "weight_clips" not in c
    ops = [op.split("(")[0] for op in c.input.pp.split("|")]
    assert ops == ["decode", "random_resized_crop", "flip_lr", "vgg_value_range", "onehot", "keep"]
    assert "random_resized_crop(224, method='pillow_bilinear')" in c.input.pp
    assert "resize_small(256, 'pillow_bicubic', rounding='down')|central_crop(224" in c.evals.val.pp
    rates = [optimizer_of(c, 7).learning_rate(7 * epoch) for epoch in (0, 1, 2, 150, 299)]
    t = np.array([0, 0, 1, 149, 298])
    np.testing.assert_allclose(rates, 1e-5 + 0.5 * 4.9e-4 * (1 + np.cos(np.pi * t / 300)), rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "epochs", "batch", "lr"),
    [
        ("reactnet_a,step=1", 128, 256, 1.25e-3),
        ("reactnet_a,step=1,epochs=256", 256, 256, 5e-4),
        ("react_resnet18,step=2,init=runs/step1", 128, 512, 2.5e-3),
        ("react_resnet18,step=2,init=none,epochs=256", 256, 512, 1e-3),
        ("bireal_resnet18", 256, 512, 1e-3),
    ],
)
def test_reactnet_is_trained_as_published(spec, epochs, batch, lr):
    taught = "" if "bireal" in spec else ",teacher_weights=r34.pth"
    c = config.load(f"configs/reactnet.py:{spec}{taught}")
    assert (c.total_epochs, c.input.batch_size) == (epochs, batch)
    assert c.model.precision == ("w32a1" if "step=1" in spec else "binary")
    assert c.optax.get("weight_decay", 0) == (1e-5 if "step=1" in spec else 0)
    assert c.get("model_init") == (None if "runs/step1" not in spec else c.model_init)
    assert c.task.get("kind") == (None if "bireal" in spec else "teacher_only")
    rates = [optimizer_of(c, 5).learning_rate(5 * epoch + 4) for epoch in (0, 1, epochs - 2, epochs - 1)]
    wanted = lr * (1 - np.array([1, 2, epochs - 1, epochs]) / epochs)
    np.testing.assert_allclose(rates, wanted, rtol=1e-4, atol=1e-12)
    if "bireal" in spec:
        assert c.task.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("binaryvit.py:binaryvit_s", "the loss is the teacher's answers and nothing else.*teacher=WORKDIR"),
        ("binaryvit.py:teacher=deit_s16", "needs teacher_weights=FILE"),
        ("binaryvit.py:binaryvit_s,distil=none", "unknown argument 'distil'. Did you mean 'distill'"),
        ("binaryvit.py:vit_ti16,distill=none,size=small", "size=small is for binaryvit_"),
        ("binaryvit.py:distill=none,size=small,res=48", "res=32 or res=64, not for res=48"),
        ("reactnet.py:reactnet_a", "unknown step None. Known: 1, 2"),
        ("reactnet.py:reactnet_a,step=2", "step=2 goes on from step 1: give init="),
        ("reactnet.py:reactnet_a,step=1,init=x", "step=1 begins from scratch"),
        ("reactnet.py:bireal_resnet18,step=1", "is trained in one step"),
        ("reactnet.py:bireal_resnet18,teacher=x", "learns from labels"),
        ("reactnet.py:reactnet_b,step=1", "unknown model 'reactnet_b'. Did you mean 'reactnet_a'"),
    ],
)
def test_mistakes_in_the_arguments_are_told(spec, says):
    with pytest.raises(UserError, match=says):
        config.load(f"configs/{spec}")


def run(spec, workdir, **overrides):
    c = config.load(spec, {key.replace("__", "."): str(value) for key, value in overrides.items()})
    with Preempted() as stop:
        assert train(c, workdir, stop) == 0
    return read_metrics(workdir)


SHORT = dict(total_steps=2, log_training_steps=1, evals__val__split="test[:16]", report=False)
NARROW = dict(model__width=(8, 16), model__depth=(1, 1), model__mlp_dim=(16, 32), model__num_heads=(1, 2))


def test_a_small_binaryvit_learns_digits_from_the_teacher_that_comes_with_it(tmp_path):
    spec = "configs/binaryvit.py:binaryvit_ti,data=digits,teacher=vit_ti16,batch=16,clip=0.1"
    rows = run(spec, tmp_path, **SHORT, **NARROW, model__reduction=(2, 1), model__patch_size=8)
    assert np.isfinite([row["training_loss"] for row in rows]).all()
    for name in ("signs_flipped", "attention_on", "pass/activations", "pass/attention"):
        assert 0 <= rows[0][f"binary/{name}"] <= 1
    assert rows[0]["binary/signs_flipped"] > 0


def test_reactnet_goes_on_from_its_first_step(tmp_path):
    small = dict(SHORT, model__widths=(4, 4, 8, 8), model__units=(1, 1, 1, 1))
    common = "react_resnet18,data=digits,batch=16,clip=1"
    run(f"configs/reactnet.py:{common},step=1,decay=released", tmp_path / "one", **small)
    rows = run(f"configs/reactnet.py:{common},step=2,init={tmp_path / 'one'}", tmp_path / "two", **small)
    assert rows[0]["binary/pass/weights"] == 1


def test_the_ladder_is_five_rows_and_three_seeds():
    teacher = pathlib.Path("configs/weights").resolve()  # any folder: nothing is read
    plan = trials.read(f"configs/sweeps/binary_ladder.py:{teacher}")
    found = [trial.load() for trial in plan.trials.values()]
    assert len(found) == 15 and len({c.model.name for c in found}) == 5
    patches = {c.model.name: c.model.patch_size for c in found}
    assert patches == {name: 1 if name == "binaryvit_ti" else 4 for name in patches}
    plan = trials.read(f"configs/sweeps/binary_ladder.py:{teacher},what=locality,seeds=1")
    locality = [trial.load() for trial in plan.trials.values()]
    kinds = {(c.task.name, c.model.spt, c.model.lsa) for c in locality}
    assert len(locality) == len(kinds) == 8
