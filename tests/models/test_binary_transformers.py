"""Every Transformer of the registry with one-bit weights, one-bit activations, or both."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import compiler, config, experiment, models, sharding
from vitjax.analysis.attention import capture
from vitjax.errors import UserError
from vitjax.kernels import binary_matmul
from vitjax.layers import binary, precision
from vitjax.layers.encoder import loop_to_scan
from vitjax.weights.tree import flatten

# Images of 16 pixels. Behind the fields: how many linear layers are binary, how many attentions, and how many
# products stay float (embedding and head; mixes of heads; the features of a Performer).
PLAIN = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
STAGES = dict(width=(16, 32), depth=(1, 1), mlp_dim=(32, 64), num_heads=(2, 4))
NETWORKS = {
    "vit": ("vit_s8", PLAIN, 6, 1, 2),
    "map": ("vit_s8", PLAIN | dict(pool="map"), 12, 2, 2),
    "sl_vit": ("sl_vit", PLAIN | dict(depth=2), 12, 2, 2),
    "deit": ("deit_ti8_distilled", PLAIN, 6, 1, 3),
    "hybrid": ("r_ti16", PLAIN | dict(patch_size=2), 6, 1, 2),
    "cait": ("cait_xxs24", PLAIN | dict(patch_size=8, class_depth=1), 12, 2, 4),
    "sl_cait": ("sl_cait", PLAIN | dict(head_dim=6, class_depth=1), 12, 2, 6),
    "pit": ("pit_ti", STAGES | dict(patch_size=4, patch_stride=2), 13, 2, 1),  # embeds by convolution
    "sl_pit": ("sl_pit", STAGES | dict(head_dim=8, patch_size=4), 14, 2, 2),
    "swin": ("swin_t", dict(width=16, depths=(2, 1), num_heads=(2, 4), window=2), 19, 3, 2),
    "sl_swin": ("sl_swin", dict(width=16, depths=(1, 1), num_heads=(2, 4), window=2, patch_size=4), 13, 2, 2),
    # Of the layer that reads pixels query, key and value stay float; a Performer's products do as well.
    "t2t": ("t2t_vit_7", PLAIN | dict(token_dim=8, splits=2), 10, 1, 9),
    "sl_t2t": ("sl_t2t", PLAIN | dict(token_dim=8), 10, 2, 4),
    "splits": ("sl_t2t", PLAIN | dict(splits=((4, 4, 0),)), 6, 1, 2),
}  # fmt: skip
IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("f")
KEY = jax.random.key(0)
DOOR = "binary_matmul"
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # programs that run once compile in half the time


def model_of(network, precision="binary", **fields):
    name, own, *_ = NETWORKS[network]
    return models.create(name, **{"num_classes": 3, "precision": precision, **own, **fields})


def shapes(model):
    return dict(jax.eval_shape(model.init, KEY, IMAGES[:1]))


def randomised(model, seed=1):
    """Variables as they may be in training: scales about 1, kernels large, all else small."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "clip":
            return np.full(leaf.shape, 0.08, "f")
        middle: Any = {"scale": 1.0, "slope": 0.25}.get(name, 0.0)
        if len(path) > 1 and path[-2].key in ("proj_l", "proj_w"):  # or no attention might be on
            middle = np.eye(leaf.shape[-1])[: leaf.shape[0]] if leaf.ndim == 2 else 0.0
        spread = 0.3 if leaf.ndim > 1 else 0.1
        return (middle + spread * rng.normal(size=leaf.shape)).astype("f")

    return jax.tree_util.tree_map_with_path(draw, shapes(model))


def products(jaxpr, inside=False):
    """Whether each product of a traced program is inside the door for binary ones."""
    for eqn in jaxpr.eqns:
        within = inside or eqn.params.get("name") == DOOR
        if eqn.primitive.name == "dot_general":
            yield within
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if isinstance(part, jax.extend.core.ClosedJaxpr):
                    yield from products(part.jaxpr, within)
                elif isinstance(part, jax.extend.core.Jaxpr):
                    yield from products(part, within)


def count_products(model):
    """How many of a model's products are binary, and how many are not."""
    program = jax.make_jaxpr(lambda v: model.apply(v, IMAGES)[0])(shapes(model))
    found = list(products(program.jaxpr))
    return found.count(True), found.count(False)


@pytest.mark.parametrize("network", NETWORKS)
def test_all_products_but_those_of_embedding_and_head_are_binary(network):
    _, _, linear, attentions, real = NETWORKS[network]
    assert count_products(model_of(network)) == (linear + 2 * attentions, real)


@pytest.mark.parametrize("network", ["sl_cait", "t2t"])
def test_with_weights_of_32_bits_only_attention_is_binary_and_with_activations_of_32_nothing_is(network):
    _, _, linear, attentions, real = NETWORKS[network]
    assert count_products(model_of(network, "w32a1")) == (2 * attentions, linear + real)
    assert count_products(model_of(network, "w1a32")) == (0, linear + 2 * attentions + real)


def test_the_second_of_two_steps_has_the_parameters_of_the_first():
    assert shapes(model_of("sl_cait", "w32a1")) == shapes(model_of("sl_cait"))


@pytest.mark.parametrize(
    ("network", "name"),
    [
        *[(network, "binary") for network in ("sl_vit", "sl_cait", "sl_pit", "sl_swin", "sl_t2t")],
        ("sl_vit", "w32a1"),
    ],
)
def test_what_goes_through_the_door_and_what_learns(network, name, monkeypatch):
    """Operands are what they are named; every parameter has a gradient."""
    model, operands = model_of(network, name), []

    def watched(a, b, *, a_values="pm1", b_values="pm1"):
        operands.extend([(a_values, a), (b_values, b)])
        return binary_matmul(a, b, a_values=a_values, b_values=b_values)

    for module in (binary, precision):
        monkeypatch.setattr(module, DOOR, watched)
    variables = randomised(model)
    params = variables.pop("params")

    def loss(params):
        operands.clear()
        logits, _ = model.apply({"params": params, **variables}, IMAGES)
        value = -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.array([0, 1, 2, 0])].mean()
        return value, (logits, [array for _, array in operands])

    (_, (logits, seen)), grads = jax.jit(
        jax.value_and_grad(loss, has_aux=True), compiler_options=UNOPTIMISED
    )(params)
    assert np.isfinite(logits).all() and np.ptp(logits) > 1e-3
    assert len(seen) == 2 * sum(NETWORKS[network][2:4] * np.array([name == "binary", 2 * (name != "w1a32")]))
    for (values, _), array in zip(operands, seen, strict=True):
        assert set(np.unique(array)) == ({0.0, 1.0} if values == "01" else {-1.0, 1.0})
    grads = flatten(grads)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    # A bias of all logits of a query has none, and a norm that nothing uses.
    idle = re.compile(r".*(proj_l|key)/bias|tokens_to_token/norm/.*")
    assert [path for path, grad in grads.items() if not np.any(grad) and not idle.fullmatch(path)] == []


def test_stacked_and_recomputed_blocks_are_the_same_network():
    model = model_of("sl_vit", depth=2, layer_scale=0.1)
    params = randomised(model)["params"]
    other = model.clone(scan=True, remat="nothing_saveable")

    def gradient(model, params):
        loss = lambda params: jnp.square(model.apply({"params": params}, IMAGES)[0]).sum()
        return jax.jit(jax.grad(loss), compiler_options=UNOPTIMISED)(params)

    loop, scan = loop_to_scan(gradient(model, params)), gradient(other, loop_to_scan(params))
    # On a CPU no difference was seen; the largest gradient is 42, of which this is float32's rounding.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), loop, scan)


def test_the_embedding_of_pixels_and_the_head_stay_float():
    params = shapes(model_of("sl_vit"))["params"]
    assert set(params["embedding"]["projection"]) == set(params["head"]) == {"kernel", "bias"}
    attention = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    assert attention["scale"].shape == (2,)  # LSA's temperature
    for name in ("query", "key", "value", "out"):
        assert set(attention[name]) == {"kernel", "move", "norm", "rprelu"}
    layer = shapes(model_of("sl_t2t"))["params"]["tokens_to_token"]["token_layer_0"]
    attention = layer["MultiHeadDotProductAttention_0"]
    assert set(attention["query"]) == {"kernel"} and "move" in attention["out"] and "signs" in attention


def test_kernels_begin_as_those_of_the_float_network():
    """Query, key and value of the small-dataset paper are drawn as one matrix: with its fan-out."""
    model = models.create("sl_vit", precision="binary", depth=1)
    params = jax.jit(model.init, compiler_options=UNOPTIMISED)(
        jax.random.key(0, impl="rbg"), np.zeros((1, 32, 32, 3), "f")
    )["params"]
    attention = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    for name, fans in (("query", 192 + 3 * 192), ("out", 2 * 192)):
        assert np.std(attention[name]["kernel"]) == pytest.approx((2 / fans) ** 0.5, rel=0.05)
    assert attention["average"]["clip"] == pytest.approx(1 / 65)


def test_no_batch_statistics():
    for network in ("sl_vit", "sl_cait", "sl_swin"):
        assert set(shapes(model_of(network))) == {"params"}


def test_attentions_are_found_by_the_tool_that_shows_them():
    model = model_of("sl_cait")
    found, _ = capture.attentions(model, shapes(model), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))
    assert [attention.shape for attention in found] == [(1, 2, 16, 16), (1, 2, 1, 16)]
    assert all(attention.start == pytest.approx(6**0.5) for attention in found)


@pytest.mark.parametrize(
    "name", ["vit_s16", "sl_cait", "pit_ti", "swin_t", "t2t_vit_7", "r_ti16", "deit_ti16"]
)
def test_other_precisions_are_refused_by_name(name):
    with pytest.raises(UserError, match=r"precision='Binari' is none of 'binary', .*Did you mean 'binary'"):
        models.create(name, precision="Binari")


def test_networks_without_attention_have_none():
    with pytest.raises(UserError, match=r"model\.precision is not a field of 'resnet18'"):
        models.create("resnet18", precision="binary")


# --- Runs, from the command line's overrides to a step.

SMALL = {"model.width": 16, "model.depth": 1, "model.mlp_dim": 32, "model.num_heads": 2}


def built(spec, **more):
    overrides = SMALL | {"model.precision": "binary", "input.workers": 0} | more
    return experiment.build(config.load(spec, {key: str(value) for key, value in overrides.items()}))


def first_step(run):
    batches = run.batches(0)
    _, batch = next(sharding.prefetch(batches, run.mesh))
    before = run.init_state()
    begun = jax.tree.map(np.asarray, before.params)
    state, metrics = run.train_step()(before, batch)
    batches.close()
    assert np.isfinite(float(metrics["training_loss"]))
    return flatten(jax.tree.map(lambda a, b: np.any(a != b), begun, jax.tree.map(np.asarray, state.params)))


@pytest.mark.parametrize("name", ["sl_vit", "sl_cait"])
def test_a_step_of_a_binary_network(name, monkeypatch):
    monkeypatch.setattr(compiler, "options", lambda model: UNOPTIMISED)
    more = {"schedule.warmup_percent": 0, "model.pool": "tok"}  # the rate of the first step is not 0
    more |= {"model.class_depth": 1, "model.head_dim": 8} if name == "sl_cait" else {}
    moved = first_step(built("configs/quickstart.py", **{"model.name": name, "model.patch_size": 8}, **more))
    assert all(moved[path] for path in moved if path.endswith(("/kernel", "/move", "/slope")))


def test_a_binary_student_of_a_convolutional_network_is_a_config():
    """Its loss is traced by shape when the run is built."""
    run = built("configs/deit.py:deit_ti16,data=digits,teacher=resnet18,distill=hard")
    assert run.config.task.kind == "hard" and run.task.teacher is not None
    kernels = flatten(run.abstract_state.params)
    assert "Transformer/encoderblock_0/MlpBlock_0/Dense_0/move" in kernels
