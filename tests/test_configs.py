"""Every shipped config is built, and its step is taken at a size that two cores can carry."""

import re

import jax
import numpy as np
import pytest

from vitjax import config, experiment, sharding
from vitjax.errors import UserError
from vitjax.sweep import trials

HYBRIDS = ("r_ti16", "r26_s32", "r50_l32")
STUDY = ("vit_ti16", "vit_s32", "vit_s16", "vit_b32", "vit_b16", "vit_l16")


def build(spec, **overrides):
    return experiment.build(
        config.load(spec, {key.replace("__", "."): str(v) for key, v in overrides.items()})
    )


def take_steps(run, number=2):
    state, step = run.init_state(), run.train_step()
    batches = run.batches(0)
    losses = []
    for _, batch in zip(range(number), (b for _, b in sharding.prefetch(batches, run.mesh)), strict=False):
        state, metrics = step(state, batch)
        losses.append(float(metrics["training_loss"]))
    batches.close()
    return state, losses


@pytest.mark.parametrize("model", [*STUDY, "r_ti16"])
def test_augreg_builds_every_plain_model_of_the_study_and_a_hybrid(model):
    run = build(f"configs/augreg.py:{model},data=digits", total_steps=10)
    assert run.batch_spec["image"].shape == (64, 224, 224, 3)
    assert run.batch_spec["image"].dtype == np.uint8


@pytest.mark.parametrize(
    "arg", ["aug=none", "aug=strong2,reg=0.1", "aug=light1,rep,compat=fixed", "aug=medium1,dtype=bfloat16"]
)
def test_augreg_steps(arg):
    run = build(
        f"configs/augreg.py:vit_mu8,data=digits,res=32,batch=16,{arg}", total_steps=10, input__workers=0
    )
    state, losses = take_steps(run)
    # Zero-initialised head and bias 0: the sigmoid loss of the first step is K ln 2 exactly.
    np.testing.assert_allclose(losses[0], 10 * np.log(2), rtol=1e-5)
    assert int(state.step) == 2 and np.isfinite(losses).all()


def test_augreg_steps_a_hybrid():
    small = dict(model__width=32, model__depth=1, model__mlp_dim=64, model__num_heads=2)
    spec = "configs/augreg.py:r_ti16,data=digits,res=32,batch=16,aug=light1,reg=0.1"
    run = build(spec, **small, input__workers=0)
    state, losses = take_steps(run)
    np.testing.assert_allclose(losses[0], 10 * np.log(2), rtol=1e-5)
    assert int(state.step) == 2 and np.isfinite(losses).all()
    assert "conv_root" in state.params


def test_quickstart_steps():
    run = build("configs/quickstart.py")
    state, losses = take_steps(run)
    assert np.isfinite(losses).all() and int(state.step) == 2


def test_repeated_augmentation_counts_its_own_epochs():
    run = build("configs/quickstart.py", input__repeats=3, input__batch_size=48)
    assert run.sizes == dict(batch_size=48, num_examples=26 * 48, total_steps=40 * 26)
    assert run.evaluators["val"][0] == 5 * 26


def test_a_batch_that_its_repeats_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"repeats = 3 does not divide .*batch_size = 64.*63 or 66"):
        build("configs/quickstart.py", input__repeats=3)
    with pytest.raises(UserError, match="Take a batch of 3, or"):
        build("configs/quickstart.py", input__repeats=3, input__batch_size=1)
    with pytest.raises(UserError, match="repeats = 0: 1 for one view"):
        build("configs/quickstart.py", input__repeats=0)
    run = build("configs/quickstart.py", input__repeats=3, input__split_views=True)
    assert run.sizes["num_examples"] == 20 * 64


def test_the_published_length_of_the_imagenet_runs():
    c = config.load("configs/augreg.py:vit_b16")
    assert round(c.total_epochs * 1_268_355 / c.input.batch_size) == 92_897


def test_every_preset_parses_for_every_model():
    for model in STUDY + HYBRIDS:
        for data in ("i1k", "i21k"):
            c = config.load(f"configs/augreg.py:{model},data={data}")
            experiment.parse_pp(c.input.pp, c.num_classes, "input.pp")
            for section in c.evals.values():
                experiment.parse_pp(section.pp, c.num_classes, "evals.pp")
            assert re.search(r"randaug|flip_lr\|value_range", c.input.pp)


@pytest.mark.parametrize(
    ("model", "i1k", "i21k"),
    [("r_ti16", (2, 0), None), ("r26_s32", (2, 15), (2, 10)), ("r50_l32", (2, 15), (2, 15))],
)
def test_presets_of_the_hybrids(model, i1k, i21k):
    for data, randaug in (("i1k", i1k), ("i21k", i21k)):
        found = re.search(
            r"randaug\((\d+), (\d+)", config.load(f"configs/augreg.py:{model},data={data}").input.pp
        )
        assert (found and (int(found[1]), int(found[2]))) == randaug


def test_loss_does_not_depend_on_the_number_of_devices():
    spec = "configs/quickstart.py"
    losses = []
    for mesh in ((("data", 8),), (("data", 2), ("model", 4))):
        run = build(spec, mesh=mesh, total_steps=10)
        losses.append(take_steps(run, 3)[1])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_model_parallel_rules_split_parameters_and_keep_the_loss():
    rules = (
        (r".*Dense_0/kernel", (None, "model")),
        (r".*Dense_1/kernel", ("model", None)),
        (r".*(query|key|value)/kernel", (None, "model", None)),
    )
    options = dict(mesh=(("data", 4), ("model", 2)), total_steps=10)
    plain = build("configs/quickstart.py", **options)
    split = build("configs/quickstart.py", **options, sharding=rules)
    state, losses = take_steps(split, 3)
    kernel = state.params["Transformer"]["encoderblock_0"]["MlpBlock_0"]["Dense_0"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "model")
    np.testing.assert_allclose(losses, take_steps(plain, 3)[1], rtol=1e-5)


@pytest.mark.parametrize("data", ["imagenet2012", "cifar100", "resisc45", "oxford_iiit_pet", "kitti"])
def test_transfer_is_the_recipe_of_the_study(data):
    c = config.load(f"configs/transfer.py:vit_b16,data={data},res=224")
    warmup = {20_000: 500, 10_000: 500, 2_500: 200}[c.total_steps]  # the longer of two lengths
    assert c.schedule.to_dict() == dict(decay_type="cosine", warmup_steps=warmup)
    assert (c.input.batch_size, c.grad_clip_norm, c.wd, c.task.loss) == (512, 1.0, 0.0, "softmax_xent")
    assert c.optax.to_dict() == dict(momentum=0.9, dtype="bfloat16")
    assert c.model_init.to_dict() == dict(weights="augreg:vit_b16", dont_load=("head/.*",))
    assert "dropout" not in c.model and "mixup" not in c.input.pp and "randaug" not in c.input.pp
    for pp in (c.input.pp, *(section.pp for section in c.evals.values())):
        experiment.parse_pp(pp, c.num_classes, "input.pp")


def test_transfer_has_the_two_other_crops_of_big_vision():
    c = config.load("configs/transfer.py:vit_b32,data=cifar10,crop=resmall")
    assert c.input.pp.startswith("decode|resize_small(448)|random_crop(384)|flip_lr|")
    assert c.evals.test.pp.startswith("decode|resize_small(448)|central_crop(384)|")
    assert config.load("configs/transfer.py:crop=resize").input.pp.startswith("decode|resize(448)|")


def test_the_study_fine_tunes_34_times_at_each_resolution():
    found = trials.read("configs/sweeps/transfer.py").trials.values()
    assert len(found) == 68
    assert sum(trial.axes["res"] == 224 for trial in found) == 34
    rates = {trial.axes["lr"] for trial in found if trial.axes["data"] == "imagenet2012"}
    assert rates == {0.01, 0.03}
    lengths = {(trial.axes["data"], trial.axes["steps"]) for trial in found}
    assert {("kitti", 500), ("kitti", 2_500), ("resisc45", 10_000), ("imagenet2012", 20_000)} <= lengths


def test_the_small_study_steps():
    small = "configs/sweeps/augreg_small.py:depths=1,augs=medium2,regs=0.1,seeds=1,steps=10"
    (trial,) = trials.read(small).trials.values()
    _, losses = take_steps(experiment.build(trial.load()))
    np.testing.assert_allclose(losses[0], 10 * np.log(2), rtol=1e-5)


def test_runs_that_share_programs_trace_the_step_once_and_train_as_if_alone():
    def trained(programs, **numbers):
        run = build("configs/quickstart.py", total_steps=10, model__depth=1, **numbers)
        run = experiment.build(run.config, programs)
        state, _ = take_steps(run, 3)
        return jax.tree.map(np.asarray, state.params)

    shared = {}
    trained(shared, seed=1, lr=1e-2)
    (step,) = [program for (name, _), program in shared.items() if name == "step"]
    alone, together = trained({}, seed=2, lr=1e-3), trained(shared, seed=2, lr=1e-3)
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    assert len(shared) == 2 and step._cache_size() == 1
    trained(shared, wd=0.0)
    assert len(shared) == 4  # no decay at all is another program
