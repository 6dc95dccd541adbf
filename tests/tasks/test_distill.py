"""Distillation end to end: teachers of any kind, every form of the loss, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitjax import config as config_lib
from vitjax import experiment, sharding, weights
from vitjax.errors import UserError
from vitjax.preemption import Preempted
from vitjax.tasks import create
from vitjax.train import open_checkpoints, train
from vitjax.train_state import step_rngs

TO_MODEL = "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')"
VIT = dict(name="vit_mu8", width=16, depth=1, num_heads=2, pool="gap")
ONE_HEAD = dict(name="students.OneHead")
TWO_HEADS = dict(name="students.TwoHeads")
NORMED = dict(name="students.Normed")


def config_of(task=None, model=ONE_HEAD, pp="decode|resize(16)|random_crop(8)|value_range(-1, 1)", **top):
    """Three steps of 16 digits of 8x8 pixels, in random crops and mixed up."""
    config = ConfigDict(dict(seed=3, total_steps=3, num_classes=10, lr=0.1, log_training_steps=1))
    config.input = dict(
        data="digits", split="train", batch_size=16, pp=f"{pp}|{TO_MODEL}|mixup(0.5)", workers=0
    )
    config.model, config.report = model, False
    config.task = dict(name="distill", **(task or {}))
    config.update(top)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The workdir of a linear model that was trained on 8x8 pixels in [-1, 1]."""
    workdir = tmp_path_factory.mktemp("teacher")
    config = config_of(dict(kind="none"), ema=dict(decay=0.5))
    with Preempted() as stop:
        assert train(config, workdir, stop) == 0
    return workdir


def first_batch(run):
    """The batch of the first step as the model sees it, on one device."""
    data_rng, _ = step_rngs(run.hyperparameters.rng, jnp.int32(0))
    batches = run.batches(0)
    batch = {key: value for key, value in next(batches).items() if key != "_id"}
    batches.close()
    return jax.jit(run.preprocess.device)(batch, data_rng)


def first_losses(config):
    """Loss and metrics of the first step of a run."""
    run = experiment.build(config)
    batch = first_batch(run)

    @jax.jit
    def loss(rng, batch, frozen):
        loss, (metrics, _) = run.task.loss(*run.task.init(rng, batch), batch, rng, frozen=frozen)
        return dict(metrics, training_loss=loss)

    values = loss(run.hyperparameters.rng, batch, jax.device_get(run.frozen))
    return {name: float(value) for name, value in values.items()}


def softmax(x):
    e = np.exp(np.float64(x) - np.max(x, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["soft", "hard", "token"])
def test_the_step_minimises_what_the_paper_says(teacher, kind):
    model = TWO_HEADS if kind == "token" else ONE_HEAD
    task = dict(kind=kind, alpha=0.3, temperature=2.0, teacher=dict(weights=str(teacher)))
    run = experiment.build(config_of(task, model))
    batch = first_batch(run)
    params, _ = run.task.init(run.hyperparameters.rng, batch)
    known = weights.load(teacher, run.task.abstract_frozen["params"]).params
    z_t = run.task.teacher.model.apply({"params": known}, batch["image"])[0]
    z, out = run.model.apply({"params": params}, batch["image"], train=True)
    z_c, z_d = (out["logits_class"], out["logits_dist"]) if kind == "token" else (z, z)
    base = -np.mean(np.sum(batch["labels"] * np.log(softmax(z_c)), -1))
    if kind == "soft":
        p, q = softmax(z_t / 2), softmax(z_d / 2)
        dist = 4 * np.mean(p * np.log(p / q))
    else:
        answers = np.argmax(z_t, -1)
        dist = -np.mean(np.log(softmax(z_d))[np.arange(len(answers)), answers])
    metrics = first_losses(config_of(task, model))
    np.testing.assert_allclose(metrics["label_loss"], base, rtol=2e-5)
    np.testing.assert_allclose(metrics["distillation_loss"], dist, rtol=2e-5)
    np.testing.assert_allclose(metrics["training_loss"], 0.7 * base + 0.3 * dist, rtol=2e-5)
    agreed = np.mean(np.argmax(z_d, -1) == np.argmax(z_t, -1))
    np.testing.assert_allclose(metrics["teacher_agreement"], agreed, rtol=1e-6)


@pytest.mark.parametrize("kind", ["teacher_only", "soft_xent"])
def test_binary_networks_learn_from_the_whole_distribution_of_the_teacher(teacher, kind):
    weight = dict(kind="teacher_only") if kind == "teacher_only" else dict(kind="soft_xent", alpha=0.9)
    task = dict(weight, teacher=dict(weights=str(teacher)))
    run = experiment.build(config_of(task))
    batch = first_batch(run)
    params, _ = run.task.init(run.hyperparameters.rng, batch)
    known = weights.load(teacher, run.task.abstract_frozen["params"]).params
    p = softmax(run.task.teacher.model.apply({"params": known}, batch["image"])[0])
    q = softmax(run.model.apply({"params": params}, batch["image"], train=True)[0])
    taught, labels = (-np.mean(np.sum(target * np.log(q), -1)) for target in (p, batch["labels"]))
    metrics = first_losses(config_of(task))
    wanted = taught if kind == "teacher_only" else 0.1 * labels + 0.9 * taught
    np.testing.assert_allclose(metrics["training_loss"], wanted, rtol=2e-5)
    np.testing.assert_allclose(metrics["distillation_loss"], taught, rtol=2e-5)
    np.testing.assert_allclose(metrics["label_loss"], labels, rtol=2e-5)
    if kind == "teacher_only":  # labels may be missing
        del batch["labels"]
        frozen = jax.device_get(run.frozen)
        loss, (metrics, _) = run.task.loss(params, {}, batch, jax.random.key(0), frozen=frozen)
        np.testing.assert_allclose(loss, taught, rtol=2e-5)
        assert "label_loss" not in metrics


def test_each_head_learns_from_its_own_target_alone(teacher):
    run = experiment.build(config_of(dict(kind="token", teacher=dict(weights=str(teacher))), TWO_HEADS))
    batch, frozen = first_batch(run), jax.device_get(run.frozen)
    params, _ = run.task.init(run.hyperparameters.rng, batch)

    def gradient(alpha):
        run.task.alpha = alpha
        loss = lambda params: run.task.loss(params, {}, batch, jax.random.key(0), frozen=frozen)[0]
        return jax.grad(loss)(params)

    from_labels, from_teacher = gradient(0.0), gradient(1.0)
    assert not np.any(from_labels["head_dist"]["kernel"]) and np.any(from_labels["head"]["kernel"])
    assert not np.any(from_teacher["head"]["kernel"]) and np.any(from_teacher["head_dist"]["kernel"])


def test_the_teacher_runs_in_inference_mode_and_is_no_part_of_the_state():
    task = dict(kind="hard", teacher=dict(model=NORMED, weights="random"))
    run = experiment.build(config_of(task))
    frozen, batch = jax.device_get(run.frozen), first_batch(run)
    mean = frozen["batch_stats"]["bn"]["mean"]
    frozen["batch_stats"]["bn"]["mean"] = mean + np.float32(0.3)
    assert set(frozen) == {"params", "batch_stats"}
    wanted = run.task.teacher.model.apply(frozen, batch["image"], train=False)[0]
    np.testing.assert_allclose(run.task.teacher.logits(frozen, batch), wanted, rtol=1e-6)
    assert "bn" not in str(jax.tree.structure(run.abstract_state))


def test_slices_of_a_batch_have_their_own_answers(teacher):
    task = dict(kind="hard", teacher=dict(weights=str(teacher)))
    run = experiment.build(config_of(task, grad_accum=2))
    batches = run.batches(0)
    batch = sharding.put_batch(next(batches), run.mesh)
    batches.close()
    state, rng = run.init_state(), run.hyperparameters.rng
    params, first = jax.device_get(state.params), first_batch(run)
    loss = run.task.loss(params, {}, first, rng, frozen=jax.device_get(run.frozen))[0]
    metrics = run.train_step()(state, batch)[1]
    assert float(metrics["training_loss"]) == pytest.approx(float(loss), rel=1e-6)


def test_the_variables_of_the_teacher_are_arguments_of_the_step(teacher):
    programs = {}
    task = dict(kind="hard", teacher=dict(weights=str(teacher)))
    for name in (str(teacher), f"{teacher}:ema_params"):
        task["teacher"]["weights"] = name
        run = experiment.build(config_of(task, seed=1 if programs else 0), programs)
        run.train_step()
    assert len([name for name, _ in programs if name == "step"]) == 2  # another teacher, another program
    run = experiment.build(config_of(task, seed=5), programs)
    run.train_step()
    assert len([name for name, _ in programs if name == "step"]) == 2
    batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in run.batch_spec.items()}
    step = next(program for (name, _), program in programs.items() if name == "step")
    hyper = run.hyperparameters.replace(frozen=run.frozen)
    text = step.lower(run.abstract_state, batch, hyper).as_text()
    largest = max(leaf.size for leaf in jax.tree.leaves(run.frozen))
    constants = re.findall(r"stablehlo\.constant dense<.*> : tensor<([\dx]*)x\w+>", text)
    assert max(np.prod([int(n) for n in shape.split("x")]) for shape in constants if shape) < largest


def test_averaged_parameters_of_a_run_teach_as_well(teacher):
    other = dict(kind="soft", kl_mean="batch", teacher=dict(weights=f"{teacher}:ema_params"))
    same = dict(kind="soft", kl_mean="batch", teacher=dict(weights=str(teacher)))
    a, b = (first_losses(config_of(task))["distillation_loss"] for task in (other, same))
    assert a != b and np.isfinite([a, b]).all()


def test_a_teacher_sees_its_own_size_and_range(teacher):
    """A student of [0, 1] and 12x12 pixels: the teacher's logits are those of converted images."""
    task = dict(kind="hard", teacher=dict(weights=str(teacher), convert=True))
    config = config_of(task, pp="decode|resize(12)|vgg_value_range")
    run = experiment.build(config)
    image = first_batch(run)["image"]
    pixels = image * np.float32([58.395, 57.12, 57.375]) + np.float32([123.675, 116.28, 103.53])
    wanted = jax.image.resize(pixels / 127.5 - 1, (16, 8, 8, 3), "cubic", antialias=True)
    frozen = jax.device_get(run.frozen)
    got = run.task.teacher.logits(frozen, {"image": image})
    np.testing.assert_allclose(got, run.task.teacher.model.apply(frozen, wanted)[0], atol=2e-5)
    assert "resized to 8x8 and brought to its range" in run.task.notes[0]


def test_the_checkpoints_know_the_teacher(teacher, tmp_path):
    task = dict(kind="hard", teacher=dict(weights="random", model=NORMED))
    run = experiment.build(config_of(task))
    with open_checkpoints(run, tmp_path) as checkpoints:
        checkpoints.save(1, run.init_state())
    other = experiment.build(config_of(task))
    other.frozen["params"]["head"]["bias"] += 1.0  # as if the file had been written anew
    with pytest.raises(UserError, match=r"another config: task\.teacher\.checksum is \d+ now, \d+ there"):
        open_checkpoints(other, tmp_path)


def test_a_run_goes_through_and_is_evaluated(teacher, tmp_path):
    task = dict(kind="token", teacher=dict(weights=str(teacher)))
    config = config_of(task, TWO_HEADS, total_steps=2)
    pp = f"decode|resize(8)|value_range(-1, 1)|{TO_MODEL}"
    config.evals = dict(val=dict(type="accuracy", data="digits", split="test[:32]", pp=pp))
    with Preempted() as stop:
        assert train(config, tmp_path, stop) == 0
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_no_distillation_needs_and_runs_no_teacher():
    none = config_of(dict(kind="none", teacher=dict(weights="nowhere")))
    classify = config_of()
    classify.task = dict(name="classify")
    a, b = (first_losses(config) for config in (none, classify))
    assert a == b and "distillation_loss" not in a


def test_a_distilled_model_trains_its_mean_without_a_teacher():
    config = config_of(dict(kind="none"), dict(TWO_HEADS, average_heads=True))
    assert np.isfinite(first_losses(config)["training_loss"])


RANDOM = dict(weights="random", model=VIT)


@pytest.mark.parametrize(
    ("task", "model", "says"),
    [
        (
            dict(kind="sotf", teacher=RANDOM),
            ONE_HEAD,
            r"config\.task\.kind = 'sotf' is none of .*Did you mean 'soft'",
        ),
        (
            dict(kind="hard"),
            ONE_HEAD,
            r"config\.task\.kind = 'hard' needs a teacher: set config\.task\.teacher",
        ),
        (dict(kind="teacher_only"), ONE_HEAD, r"kind = 'teacher_only' needs a teacher"),
        (dict(kind="soft_xent"), ONE_HEAD, r"kind = 'soft_xent' needs a teacher"),
        (dict(kind="teacher_only", alpha=0.9, teacher=RANDOM), ONE_HEAD, r"take kind='soft_xent'"),
        (dict(kind="teacher_only", teacher=RANDOM), TWO_HEADS, r"the class head of config\.model .*'token'"),
        (dict(kind="token", teacher=RANDOM), ONE_HEAD, r"'token' .* config\.model has no distillation head"),
        (
            dict(kind="token", teacher=RANDOM),
            dict(TWO_HEADS, average_heads=True),
            r"config\.model trains the mean of both heads",
        ),
        (dict(kind="none"), TWO_HEADS, r"config\.model is distilled .*no teacher.*average_heads=True"),
        (dict(kl_mean="bach", teacher=RANDOM), ONE_HEAD, r"kl_mean = 'bach' .*Did you mean 'batch'"),
        (dict(alpha=1.5, teacher=RANDOM), ONE_HEAD, r"config\.task\.alpha = 1\.5 must lie between 0 and 1"),
        (dict(temperature=0, teacher=RANDOM), ONE_HEAD, r"temperature = 0 must be above 0"),
        (dict(teacher_smoothing=-1, teacher=RANDOM), ONE_HEAD, r"teacher_smoothing = -1 must lie"),
        (dict(teachr=RANDOM), ONE_HEAD, r"'task\.teachr'.*Did you mean 'teacher'"),
        (dict(teacher=dict(weight="x")), ONE_HEAD, r"'task\.teacher\.weight'.*Did you mean 'weights'"),
        (
            dict(teacher="runs/a"),
            ONE_HEAD,
            r"'task\.teacher' = 'runs/a' is of type str; it must be a section",
        ),
        (dict(teacher=dict(model=VIT)), ONE_HEAD, r"names neither weights nor logits"),
        (dict(teacher=dict(weights="random")), ONE_HEAD, r"teacher\.model\.name is missing"),
        (
            dict(teacher=dict(weights="nowhere", model=VIT)),
            ONE_HEAD,
            r"config\.task\.teacher: 'nowhere': there is no",
        ),
        (
            dict(teacher=dict(weights="random", model=dict(name="vit_q"))),
            ONE_HEAD,
            r"task\.teacher.*names no model",
        ),
        (
            dict(teacher=dict(weights="random", model=dict(VIT, num_classes=3))),
            ONE_HEAD,
            r"task\.teacher\.model\.num_classes is the student's",
        ),
        (
            dict(teacher=dict(RANDOM, input=dict(size=32))),
            ONE_HEAD,
            r"vit_mu8 of random takes 32x32 pixels, the student's images have 8x8\. Set .*convert=True",
        ),
        (
            dict(teacher=dict(RANDOM, input="vgg_value_range")),
            ONE_HEAD,
            r"takes values of \[-2\.118, 2\.249\] .*the student's images have \[-1, 1\]\. Set .*convert=True",
        ),
        (dict(teacher=dict(RANDOM, input="resize(8)")), ONE_HEAD, r"'resize\(8\)' must be a value-range op"),
        (dict(teacher=dict(RANDOM, input=dict(mean=0.5))), ONE_HEAD, r"needs mean and std together"),
        (
            dict(teacher=dict(RANDOM, input=dict(mean=0.5, std=0.5))),
            ONE_HEAD,
            r"scale 0\.\.255 .*multiply them by 255",
        ),
        (dict(teacher=dict(RANDOM, input=dict(size=0))), ONE_HEAD, r"size = 0 must be pixels"),
        (
            dict(teacher=dict(logits="nowhere")),
            ONE_HEAD,
            r"cannot read 'nowhere'.*python -m vitjax\.teacher_logits",
        ),
    ],
)
def test_a_mistake_is_one_message_before_the_first_step(task, model, says):
    with pytest.raises(UserError) as refused:
        experiment.build(config_of(task, model))
    assert re.search(says, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_what_a_run_was_trained_on_is_known_from_its_workdir(teacher):
    task = dict(teacher=dict(weights=str(teacher)))
    with pytest.raises(UserError, match=r"takes 8x8 pixels, the student's images have 16x16\."):
        experiment.build(config_of(task, pp="decode|resize(16)|value_range(-1, 1)"))
    with pytest.raises(UserError, match=r"takes values of \[-1, 1\], the student's images have \[0, 1\]\."):
        experiment.build(config_of(task, pp="decode|resize(8)|value_range(0, 1)"))
    with pytest.raises(UserError, match="has 10 labels, the student 12"):
        experiment.build(config_of(task, num_classes=12))
    with pytest.raises(UserError, match="not known: use value-range ops that do not clip"):
        clipped = "decode|resize(8)|value_range(-1, 1, in_min=9, clip_values=True)"
        experiment.build(config_of(task, pp=clipped))
    with pytest.raises(UserError, match="images of 3 channels, the student's have 1"):
        grey = "decode(channels=1)|resize(8)|value_range(-1, 1)"
        experiment.build(config_of(task, pp=grey))


def test_a_file_of_weights_says_neither_labels_nor_range(tmp_path):
    run = experiment.build(config_of(dict(kind="none"), VIT))
    params, _ = jax.jit(run.task.init)(jax.random.key(7), first_batch(run))
    file = tmp_path / "vit.npz"
    weights.save(file, params)
    section = dict(weights=str(file), model=VIT)
    with pytest.raises(
        UserError, match=r"input is missing: nothing says which values vit_mu8 of .*npz takes"
    ):
        experiment.build(config_of(dict(teacher=section)))
    section["input"] = "value_range(-1, 1)"
    teacher = experiment.build(config_of(dict(teacher=section)))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(teacher.frozen["params"]), params)
    with pytest.raises(UserError, match=r"vit\.npz has 10 labels, the student 12"):
        experiment.build(config_of(dict(teacher=section), num_classes=12)).train_step()
    section["model"] = dict(VIT, width=32)
    with pytest.raises(UserError, match=r"config\.task\.teacher\.weights: .*does not fit the model"):
        experiment.build(config_of(dict(teacher=section))).train_step()


def test_classify_refuses_a_distilled_model_too():
    from students import TwoHeads

    with pytest.raises(UserError, match=r"config\.model is distilled \(TwoHeads\), but there is no teacher"):
        create({"name": "classify"}, TwoHeads(10))
    create({"name": "classify"}, TwoHeads(10, average_heads=True))


def test_check_says_what_the_teacher_is(teacher, capsys):
    from vitjax.check import check

    assert check(config_of(dict(teacher=dict(weights=str(teacher))))) == 0
    printed = capsys.readouterr().out
    assert f"teacher: students.OneHead of {teacher}, images as the student's" in printed
    assert re.search(r"teacher: [\d.]+ KiB", printed)


def test_config_overrides_reach_the_teacher(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    task = dict(name='distill', teacher=dict(weights='a'))\n"
        "    return ConfigDict(dict(task=task, model=dict(name='x')))\n"
    )
    config = config_lib.load(str(file), {"task.teacher.logits": "b"})
    assert config_lib.plain(config.task.teacher) == dict(weights="a", logits="b")
