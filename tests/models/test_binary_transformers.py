"""Every Transformer of the registry with one-bit weights, one-bit activations, or both."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vitjax import config as config_lib
from vitjax import experiment, models, sharding
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
        middle = {"scale": 1.0, "slope": 0.25}.get(name, 0.0)
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


@pytest.mark.parametrize(
    ("network", "name"),
    [
        *[(network, "binary") for network in NETWORKS if network not in ("vit", "hybrid", "splits", "swin")],
        ("sl_vit", "w1a32"),
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

    # Without optimisation it compiles in half the time.
    options = {"xla_backend_optimization_level": 0}
    (_, (logits, seen)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)(
        params
    )
    assert np.isfinite(logits).all() and np.ptp(logits) > 1e-3
    assert len(seen) == 2 * sum(NETWORKS[network][2:4] * np.array([name == "binary", 2 * (name != "w1a32")]))
    for (values, _), array in zip(operands, seen, strict=True):
        assert set(np.unique(array)) == ({0.0, 1.0} if values == "01" else {-1.0, 1.0})
    grads = flatten(grads)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    # A bias of all logits of a query has none, and a norm that nothing uses.
    idle = re.compile(r".*(proj_l|key)/bias|tokens_to_token/norm/.*")
    assert [path for path, grad in grads.items() if not np.any(grad) and not idle.fullmatch(path)] == []
