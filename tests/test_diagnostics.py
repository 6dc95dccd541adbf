"""Diagnostics of binary networks: the right numbers, wherever quantisers are; looking changes nothing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitjax import diagnostics, experiment
from vitjax import metrics as metrics_lib
from vitjax.errors import UserError
from vitjax.layers.binary import BinaryConv, BinaryDense, binarise_attention
from vitjax.preemption import Preempted
from vitjax.train import train

PP = (
    "decode|resize(8)|value_range(-1, 1)|onehot(10, key='label', key_result='labels')|keep('image', 'labels')"
)


class Block(nn.Module):
    """A binary linear layer and binary attention of 3 queries to 4 keys."""

    @nn.compact
    def __call__(self, x, _=None):
        y = BinaryDense(4, name="query")(x)
        on, clip = binarise_attention(nn.softmax(x), self.param("clip", nn.initializers.constant(0.5), ()))
        return x + y + on * clip, None


class Network(nn.Module):
    """One block rematerialised, three scanned, and a convolution."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, image, *, train=False, progress=0.0):
        x = image.mean(-1).reshape(image.shape[0], 1, -1)[..., :12].reshape(-1, 3, 4)
        x, _ = nn.remat(Block)(name="first")(x)
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(name="stack")(x)
        conv = BinaryConv(2, 3, padding=1, name="conv")(image).mean((1, 2))
        logits = nn.Dense(self.num_classes, name="head")(jnp.concatenate([x.mean(1), conv], -1))
        return logits + 0 * progress, {}


class Float(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, image, *, train=False):
        return nn.Dense(self.num_classes)(image.mean((1, 2))), {}


@pytest.fixture(scope="module")
def measured():
    """Metrics with layers, the parameters before and after, and the images."""
    model, image = Network(), jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
    params = model.init(jax.random.key(1), image)["params"]
    params["conv"]["kernel"] = params["conv"]["kernel"] * 8  # some beyond 1
    params["first"]["query"]["kernel"] = params["first"]["query"]["kernel"] * 3
    noise = lambda w: w + 0.2 * jax.random.normal(jax.random.key(w.size), w.shape)
    after = jax.tree.map(noise, params)
    forward = lambda params, state, batch, rng, progress: model.apply({"params": params}, batch["image"])[0]
    tool = diagnostics.Diagnostics(forward, layers=True)

    @jax.jit
    def look(params, after, batch):
        found, signs = tool.before(params, {}, batch, None)
        return found | tool.after(signs, after, {}, batch, None)

    return jax.device_get(look(params, after, {"image": image})), params, after, image


def centred(kernel):
    return np.float64(kernel) - np.mean(np.float64(kernel), axis=-2, keepdims=True)


def test_flipped_signs_are_those_of_centred_and_of_plain_kernels(measured):
    found, before, after, _ = measured
    flips = lambda a, b: np.mean(np.sign(a) != np.sign(b))
    conv = flips(before["conv"]["kernel"], after["conv"]["kernel"])
    stack = [before["stack"]["query"]["kernel"], after["stack"]["query"]["kernel"]]
    each = [flips(*(centred(kernel[i]) for kernel in stack)) for i in range(3)]
    first = flips(*(centred(p["first"]["query"]["kernel"]) for p in (before, after)))
    np.testing.assert_allclose(found["binary/signs_flipped/conv"], conv, rtol=1e-6)
    np.testing.assert_allclose(found["binary/signs_flipped/first/query"], first, rtol=1e-6)
    got = [found[f"binary/signs_flipped/stack/query/{i}"] for i in range(3)]
    np.testing.assert_allclose(got, each, rtol=1e-6)
    total = (54 * conv + 16 * first + 16 * sum(each)) / (54 + 64)
    np.testing.assert_allclose(found["binary/signs_flipped"], total, rtol=1e-6)
    assert 0 < total < 1


def test_pass_rates_are_those_of_each_estimator(measured):
    found, before, _, image = measured
    conv, query = before["conv"]["kernel"], before["first"]["query"]["kernel"]
    np.testing.assert_allclose(found["binary/pass/weights/conv"], np.mean(np.abs(conv) <= 1), rtol=1e-6)
    inside = np.mean(np.abs(centred(query)) <= 1)
    np.testing.assert_allclose(found["binary/pass/weights/first/query"], inside, rtol=1e-6)
    assert 0 < found["binary/pass/weights/conv"] < 1 and 0 < inside < 1
    np.testing.assert_allclose(found["binary/pass/activations/conv"], np.mean(np.abs(image) < 1), rtol=1e-6)


def test_attention_that_is_on_and_that_never_is(measured):
    found, before, _, image = measured
    x = np.asarray(image).mean(-1).reshape(5, 1, -1)[..., :12].reshape(-1, 3, 4)
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    clip = float(before["first"]["clip"])
    on = p / clip > 0.5
    np.testing.assert_allclose(found["binary/attention_on/first"], on.mean(), rtol=1e-6)
    np.testing.assert_allclose(found["binary/attention_dead/first"], 1 - on.any(0).mean(), atol=1e-7)
    np.testing.assert_allclose(found["binary/pass/attention/first"], np.mean(p <= clip), rtol=1e-6)
    assert {f"binary/attention_on/stack/{i}" for i in range(3)} <= set(found)


def test_histograms_count_every_latent_weight_once(measured):
    found, before, _, _ = measured
    kernels = [before["conv"]["kernel"], *(before[n]["query"]["kernel"] for n in ("first", "stack"))]
    weights = np.concatenate([np.ravel(kernel) for kernel in kernels])
    *counts, largest = found["histograms"]["binary/latent_weights"]
    assert largest == np.abs(weights).max() and sum(counts) == weights.size
    edges = np.linspace(-1, 1, diagnostics.BINS + 1, dtype=np.float32) * largest
    np.testing.assert_array_equal(counts, np.histogram(weights, edges)[0])
    own = found["histograms"]["binary/latent_weights/conv"]
    assert own[-1] == np.abs(kernels[0]).max() and sum(own[:-1]) == 54


def config_of(model="test_diagnostics.Network", **top):
    config = ConfigDict(dict(seed=1, total_steps=4, num_classes=10, lr=0.05, log_training_steps=2))
    config.input = dict(data="digits", split="train", batch_size=16, pp=PP, workers=0)
    config.model, config.task = dict(name=model), dict(name="classify")
    config.update(top)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of four steps that was looked into at steps 1, 2 and 4."""
    workdir = tmp_path_factory.mktemp("run")
    with Preempted() as stop:
        assert train(config_of(diagnostics=dict(layers=True), grad_accum=2), workdir, stop) == 0
    return workdir


def test_a_run_writes_them_at_logging_steps_and_on_its_page(workdir):
    rows = metrics_lib.read_metrics(workdir)
    assert [row["step"] for row in rows if "binary/signs_flipped" in row] == [1, 2, 4]
    values = [v for row in rows for k, v in row.items() if k.startswith("binary/")]
    assert np.isfinite(values).all() and np.min(values) >= 0 and np.max(values) <= 1
    histograms = metrics_lib.read_histograms(workdir)
    assert [row["step"] for row in histograms] == [1, 2, 4]
    assert sum(histograms[0]["binary/latent_weights"]["counts"]) == 54 + 64
    page = (workdir / "report.html").read_text()
    for title in ("Signs flipped by an update", "Binary attention", "Latent weights", "all binary layers"):
        assert title in page


def test_tensorboard_has_the_histograms(workdir):
    from tensorboardX.proto import event_pb2

    [path] = (workdir / "tensorboard").iterdir()
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):  # records: length, its checksum, the event, its checksum
        size = int.from_bytes(data[at : at + 8], "little")
        event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        found += [(event.step, v) for v in event.summary.value if v.tag == "binary/latent_weights"]
        at += 16 + size
    wanted = metrics_lib.read_histograms(workdir)
    assert [step for step, _ in found] == [1, 2, 4]
    for row, (_, value) in zip(wanted, found, strict=True):
        assert list(value.histo.bucket) == row["binary/latent_weights"]["counts"]
        np.testing.assert_allclose(value.histo.max, row["binary/latent_weights"]["largest"])


def test_looking_changes_nothing(tmp_path):
    losses = {}
    for name, section in (("off", None), ("on", dict())):
        config = config_of(report=False)
        config.diagnostics = section
        with Preempted() as stop:
            assert train(config, tmp_path / name, stop) == 0
        rows = metrics_lib.read_metrics(tmp_path / name)
        losses[name] = [(row["training_loss"], row["l2_params"], row["l2_grads"]) for row in rows]
    np.testing.assert_allclose(losses["on"], losses["off"], rtol=1e-6)
    assert not (tmp_path / "off" / "histograms.jsonl").exists()


def test_a_network_without_binary_layers_is_refused_and_so_are_other_keys():
    with pytest.raises(UserError, match=r"config\.diagnostics measures binary networks"):
        experiment.build(config_of("test_diagnostics.Float", diagnostics=dict()))
    with pytest.raises(UserError, match=r"'diagnostics\.layer'.*Did you mean 'layers'"):
        experiment.build(config_of(diagnostics=dict(layer=True)))


def test_an_annealed_network_is_told_how_far_training_is():
    run = experiment.build(config_of())
    seen = []
    original = run.task.loss
    run.task.loss = lambda *a, progress=None, **k: (
        seen.append(progress),
        original(*a, progress=progress, **k),
    )[1]
    state = run.init_state()
    batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in run.batch_spec.items()}
    jax.eval_shape(run._step(), state, batch, run.hyperparameters)
    assert len(seen) == 1 and seen[0] is not None and run.task.takes_progress
