"""Every shipped config is built, and its step is taken at a size that two cores can carry."""

import re

import jax
import numpy as np
import pytest

from vitjax import config, durations, experiment, models, optim, sharding
from vitjax.data import pipeline
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


DEIT = [f"deit_{size}16{head}" for size in ("ti", "s", "b") for head in ("", "_distilled")]
TEACHER = "teacher=regnety_16gf,teacher_weights=regnety_160-a5fe301d.pth"
TABLE_9 = [
    "random_resized_crop(224)",
    "flip_lr",
    "timm_randaug('rand-m9-mstd0.5-inc1')",
    "vgg_value_range",
    "random_erasing(0.25)",
]


def parses(c, num_classes=10):
    for section in (c.input, *c.evals.values()):
        experiment.parse_pp(section.pp, c.get("num_classes", num_classes), "input.pp")


def ops_of(c):
    """The ops of the training string, without what makes and keeps arrays."""
    return [op for op in c.input.pp.split("|") if not op.startswith(("decode", "onehot", "keep"))]


def evaluated(short_side, crop):
    resize = f"resize_small({short_side}, method='pillow_bicubic', rounding='down')"
    return f"{resize}|central_crop({crop}, rounding='even')"


def optimizer_of(c, params=None, *, total_steps=10**6, num_examples=1_281_167):
    """The optimizer of a config, with rates that the batch has been put into."""
    params = params or {"head": {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)}}
    sizes = dict(total_steps=total_steps, batch_size=c.input.batch_size, num_examples=num_examples)
    return optim.create(params, **sizes, **experiment.optimizer_section(c))


@pytest.mark.parametrize("model", DEIT)
def test_deit_is_table_9(model):
    arg = f",{TEACHER}" if "distilled" in model else ""
    c = config.load(f"configs/deit.py:{model}{arg}")
    assert (c.total_epochs, c.input.batch_size, c.input.repeats) == (300, 1024, 3)
    assert c.model.to_dict() == dict(name=model, drop_path=0.1, dtype="float32")
    groups = 16 if "_b16" in model else 4  # processes
    assert ops_of(c) == [*TABLE_9, f"mixup_cutmix(mixup=0.8, cutmix=1.0, groups={groups})"]
    assert c.task.label_smoothing == 0.1 and c.task.loss == "softmax_xent"
    assert c.ema.decay == 0.99996 and "grad_clip_norm" not in c and "val_ema" not in c.evals
    assert c.optax.to_dict() == dict(b1=0.9, b2=0.999, eps=1e-8) and c.optax_name == "scale_by_adam"
    assert evaluated(256, 224) in c.evals.val.pp
    optimizer = optimizer_of(
        c,
        {
            "dist": jax.ShapeDtypeStruct((2,), np.float32),
            "kernel": {"kernel": jax.ShapeDtypeStruct((2, 2), np.float32)},
        },
    )
    np.testing.assert_allclose([optimizer.lr, optimizer.wd], [1e-3, 0.05 * 1e-3])
    epoch = pipeline.examples_per_epoch(1_281_167, batch_size=1024, repeats=3)
    sizes = dict(batch_size=1024, num_examples=epoch, total_steps=None)
    assert durations.steps(c, "total", **sizes) == 375_300 and epoch // 1024 == 1251
    parses(c)


def test_the_learning_rates_of_deit_are_the_official_ones():
    with np.load("tests/goldens/timm/unit_lr_schedule.npz") as golden:
        for name, spec in (
            ("deit_300", "deit_s16"),
            ("deit_1000", "deit_s16,epochs=1000"),
            ("ft384", "deit_s16,res=384,init=x"),
        ):
            c = config.load(f"configs/deit.py:{spec}")
            epoch = pipeline.examples_per_epoch(1_281_167, batch_size=c.input.batch_size, repeats=3)
            steps = epoch // c.input.batch_size
            optimizer = optimizer_of(c, total_steps=c.total_epochs * steps, num_examples=epoch)
            ours = [optimizer.learning_rate(e * steps + e % steps) for e in range(c.total_epochs)]
            np.testing.assert_allclose(ours, golden[f"{name}/lr_used_per_epoch"], rtol=2e-7)


def test_rates_follow_an_override_of_the_batch():
    c = config.load("configs/deit.py:deit_b16", {"input.batch_size": "512"})
    np.testing.assert_allclose([optimizer_of(c).lr, optimizer_of(c).wd], [5e-4, 0.05 * 5e-4])


def test_deit_fine_tunes_at_384_as_published():
    c = config.load("configs/deit.py:deit_b16_distilled,res=384,init=runs/b16")
    assert (c.total_epochs, c.input.batch_size, c.model.drop_path) == (30, 512, 0.0)
    assert c.model.average_heads and c.task.name == "classify"
    assert c.model_init.to_dict() == dict(weights="runs/b16", dont_load=(), posemb="bicubic")
    assert evaluated(438, 384) in c.evals.val.pp and "cutmix=1.0, groups=16)" in c.input.pp
    optimizer = optimizer_of(c)
    np.testing.assert_allclose([optimizer.lr, optimizer.wd], [5e-6, 5e-14])
    taught = config.load(f"configs/deit.py:deit_b16_distilled,res=384,init=runs/b16,{TEACHER}")
    assert "average_heads" not in taught.model and taught.task.kind == "token"
    parses(c)


@pytest.mark.parametrize(
    ("data", "classes", "epochs", "lr", "optimizer", "erasing"),
    [
        ("cifar10", 10, 1000, 0.01, "sgd", None),
        ("cars", 196, 1000, 0.01, "sgd", None),
        ("flowers", 102, 1000, 0.01, "sgd", None),
        ("cifar100", 100, 1000, 5e-6, "scale_by_adam", "0.25"),
        ("inat18", 8142, 360, 7.5e-5, "scale_by_adam", "0.1"),
        ("inat19,source=folder:x", 1010, 360, 7.5e-5, "scale_by_adam", "0.1"),
    ],
)
def test_deit_transfers_as_its_author_says(data, classes, epochs, lr, optimizer, erasing):
    c = config.load(f"configs/deit.py:deit_b16,init=b16.npz,data={data}")
    assert (c.num_classes, c.total_epochs, c.input.batch_size) == (classes, epochs, 768)
    assert c.optax_name == optimizer and c.model_init.dont_load == ("head(_dist)?/.*",)
    made = optimizer_of(c, num_examples=50_000)
    sgd = optimizer == "sgd"
    np.testing.assert_allclose([made.lr, made.wd], [lr, 0 if sgd else 0.05 * lr], rtol=1e-6)
    if sgd:
        assert c.optax.to_dict() == dict(momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert c.model.drop_path == (0.0 if sgd else 0.1)
    found = re.search(r"random_erasing\((.*?)\)", c.input.pp)
    assert (found and found[1]) == erasing
    assert c.input.data == ("folder:x" if "inat19" in data else c.input.data)
    parses(c)


def test_weights_decay_as_published():
    params = {}
    for name in ("deit_ti16_distilled", "cait_xxs24"):
        model = models.create(name, num_classes=3, depth=2)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
        params[name] = jax.eval_shape(model.init, jax.random.key(0), image)["params"]

    def decayed(spec, name):
        groups = jax.tree.leaves(optimizer_of(config.load(spec), params[name]).groups)
        assert {group.wd_mult for group in groups} == {0.0, 1.0}
        return {group.name.split("/")[-1] for group in groups if group.wd_mult}

    spec = f"configs/deit.py:deit_ti16_distilled,{TEACHER}"
    assert decayed(spec, "deit_ti16_distilled") == {"kernel", "dist"}
    assert decayed(spec + ",decay_dist=timm", "deit_ti16_distilled") == {"kernel"}
    assert decayed("configs/cait.py:cait_xxs24", "cait_xxs24") == {"kernel"}


CAIT_DROP_PATH = dict(
    xxs24=0.05, xxs36=0.1, xs24=0.05, xs36=0.1, s24=0.1, s36=0.2, s48=0.3, m24=0.2, m36=0.3, m48=0.4
)


@pytest.mark.parametrize(("size", "drop_path"), CAIT_DROP_PATH.items())
def test_cait_is_deit_for_400_epochs(size, drop_path):
    c = config.load(f"configs/cait.py:cait_{size}")
    deit = config.load("configs/deit.py:deit_s16")
    assert (c.total_epochs, c.model.drop_path) == (400, drop_path)
    assert evaluated(224, 224) in c.evals.val.pp
    with c.unlocked(), deit.unlocked():
        deit.input.pp = deit.input.pp.replace(", groups=4", "")
        c.total_epochs, c.model, c.evals = deit.total_epochs, deit.model, deit.evals
    assert c.to_dict() == deit.to_dict()


def test_cait_fine_tunes_as_its_author_says():
    c = config.load("configs/cait.py:cait_m48,res=448,init=runs/m48")
    assert (c.total_epochs, c.input.batch_size, c.model.drop_path) == (60, 256, 0.3)
    assert config.load("configs/cait.py:cait_m36,res=384,init=runs/m36").model.drop_path == 0.3
    optimizer = optimizer_of(c, total_steps=600, num_examples=2560)  # ten steps an epoch
    np.testing.assert_allclose([optimizer.lr, optimizer.wd], [5e-6, 0.05 * 5e-6])
    rates = [optimizer.learning_rate(10 * epoch) for epoch in (0, 1, 5, 6, 10, 11, 20, 21, 31)]
    np.testing.assert_allclose(
        rates, [1e-6, 1e-6, 4.2e-6, 5e-6, 5e-6, 2.5e-6, 2.5e-6, 1.25e-6, 0.625e-6], rtol=1e-6
    )
    assert evaluated(448, 448) in c.evals.val.pp
    taught = config.load(f"configs/cait.py:cait_m36,{TEACHER}")
    assert (taught.task.kind, taught.task.alpha) == ("hard", 0.5)
    soft = config.load(f"configs/cait.py:cait_m36,distill=soft,{TEACHER}").task
    assert (soft.alpha, soft.temperature) == (0.1, 3.0)


def test_small_images_are_padded_and_cropped_as_official():
    c = config.load("configs/deit.py:deit_ti16,data=cifar10,res=32")
    assert "decode|random_crop(32, padding=4)|flip_lr|" in c.input.pp and "resize" not in c.input.pp
    assert c.total_epochs == 1000
    parses(c)


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "deit.py:deit_b16,teacher=regnety_16gf",
            "needs teacher_weights=FILE; train one with configs/teacher",
        ),
        ("deit.py:deit_b16,teacher_weights=x.pth", "teacher_weights needs a teacher"),
        ("deit.py:deit_b16,distill=soft", "distill needs a teacher"),
        ("deit.py:deit_b16,data=inat19", "inat19 is not in TFDS: give its folder, source=folder:PATH"),
        (f"deit.py:deit_b16,distill=sof,{TEACHER}", "unknown distill 'sof'. Did you mean 'soft'"),
        (f"deit.py:deit_b16_distilled,decay_dist=x,{TEACHER}", "unknown decay_dist 'x'"),
        ("cait.py:cait_m36,decay_dist=timm", "unknown argument 'decay_dist'"),
    ],
)
def test_mistakes_in_arguments_of_deit_and_cait(arg, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.load(f"configs/{arg}")


def test_deit_learns_digits_from_the_teacher_that_comes_with_it():
    spec = "configs/deit.py:deit_ti16_distilled,data=digits,teacher=resnet18"
    run = build(spec, model__width=24, model__num_heads=2, model__mlp_dim=24, model__depth=1)
    assert run.total_steps == 20 * 26
    state, losses = take_steps(run)
    assert np.isfinite(losses).all() and int(state.step) == 2 and "head_dist" in state.params
    assert run.task.teacher is not None and run.patch_grid == (4, 4) and run.macs_per_image > 0
    with pytest.raises(UserError, match="repeats = 3 does not divide"):
        build(spec, input__batch_size=64)


def test_cait_steps():
    small = dict(model__width=24, model__num_heads=2, model__mlp_dim=24, model__depth=1)
    _, losses = take_steps(build("configs/cait.py:cait_xxs24,data=digits,batch=24", **small))
    assert np.isfinite(losses).all()


def test_a_teacher_of_digits_steps():
    run = build("configs/teacher.py:resnet18,data=digits,batch=8", total_steps=4)
    assert run.num_params < 120_000  # of 32-bit numbers: what is shipped stays below 500 kB
    _, losses = take_steps(run)
    assert np.isfinite(losses).all()


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
