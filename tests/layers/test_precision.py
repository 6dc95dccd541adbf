"""Layers of any precision against their formulas, written down once more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.layers.attention import MultiHeadDotProductAttention, TalkingHeadsAttention
from vitjax.layers.binary import PRECISIONS
from vitjax.layers.locality import locality
from vitjax.layers.mlp import MlpBlock
from vitjax.layers.patch_merging import PatchMerging
from vitjax.layers.precision import BinaryAverage, BinaryProjection, fitted, linear
from vitjax.layers.shifted_patches import ShiftedPatchTokenization
from vitjax.layers.token_pooling import DepthwisePooling

KEY = jax.random.key(0)
NOT_FLOAT = tuple(name for name in PRECISIONS if name != "float")


def randomised(module, *args, seed=0):
    """Parameters away from where they begin."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), shapes)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rprelu(x, p):
    x = x - p["move1"]
    return np.where(x > 0, x, p["slope"] * x) + p["move2"]


def projected(x, p, precision, shortcut):
    """RPReLU(LN(dense(x)) + shortcut), float64."""
    kernel, x = np.float64(p["kernel"]), np.float64(x) + p["move"]
    if precision in ("binary", "w1a32"):
        kernel = np.abs(kernel).mean(0) * np.sign(kernel - kernel.mean(0))
    if precision in ("binary", "w32a1"):
        x = np.sign(x)
    return rprelu(norm(x @ kernel, p["norm"]) + shortcut, p["rprelu"])


def tokens(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape).astype("f")


def test_channels_are_repeated_or_averaged_or_left_out():
    x = np.arange(12.0).reshape(2, 6)
    assert fitted(x, 6) is x
    np.testing.assert_array_equal(fitted(x, 12), np.concatenate([x, x], 1))
    np.testing.assert_array_equal(fitted(x, 3), (x[:, ::2] + x[:, 1::2]) / 2)
    assert fitted(x, 9) is None and fitted(x, 4) is None


@pytest.mark.parametrize("precision", NOT_FLOAT)
@pytest.mark.parametrize("features", [6, 12, 3, 9])
def test_a_linear_layer(precision, features):
    module, x = BinaryProjection(features, precision), tokens(2, 5, 6)
    params = randomised(module, x)
    around = {6: x, 12: np.tile(x, 2), 3: (x[..., ::2] + x[..., 1::2]) / 2, 9: 0.0}[features]
    assert set(params) == {"kernel", "move", "norm", "rprelu"}
    np.testing.assert_allclose(
        module.apply({"params": params}, x), projected(x, params, precision, around), atol=1e-5
    )


def test_bfloat16_products_of_signs_are_exact():
    """The sum of 600 signs is above what bfloat16 can count to."""
    x = np.sign(tokens(2, 600)) * np.sign(tokens(600, seed=1)) + 0.0
    kernel = np.stack([x[0], x[1], -x[0], x[0] * np.sign(tokens(600, seed=2))], 1)
    module = BinaryProjection(4, "binary", dtype=jnp.bfloat16)
    params = randomised(module, x) | {"kernel": kernel, "move": np.zeros(600, "f")}
    exact = BinaryProjection(4, "binary").apply({"params": params}, x)
    np.testing.assert_array_equal(module.apply({"params": params}, x), exact)


def attended(x, context, p, precision, lsa, talking):
    """Output and weights of three heads; one who attends to itself also has its keys and values around."""
    split = lambda x: x.reshape(*x.shape[:2], 3, -1)
    q, k, v = (projected(of, p[name], precision, of)
               for name, of in (("query", x), ("key", context), ("value", context)))  # fmt: skip
    binary = precision != "w1a32"
    signs = {name: np.sign(split(y) + p["signs"][name]) if binary else split(y)
             for name, y in (("query", q), ("key", k), ("value", v))}  # fmt: skip
    scale = p["scale"][:, None, None] if lsa else (q.shape[-1] // 3) ** -0.5
    logits = np.einsum("bnhk,bmhk->bhnm", signs["query"], signs["key"]) * scale
    if lsa:
        logits[..., np.arange(min(logits.shape[2:])), np.arange(min(logits.shape[2:]))] = -987.0
    if talking:
        logits = np.einsum("bhnm,hg->bgnm", logits, p["proj_l"]["kernel"])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    if talking:
        weights = np.einsum("bhnm,hg->bgnm", weights, p["proj_w"]["kernel"])
    used = np.where(weights > p["average"]["clip"] / 2, p["average"]["clip"], 0.0) if binary else weights
    y = np.einsum("bhnm,bmhk->bnhk", used, signs["value"]).reshape(q.shape)
    around = q + k + v if context is x else q
    y = rprelu(norm(y, p["context"]["norm"]) + around, p["context"]["rprelu"])
    return projected(y, p["out"], precision, y), weights


@pytest.mark.parametrize(
    ("precision", "lsa", "talking", "other_keys"),
    [
        ("binary", False, False, False),
        ("binary", True, False, False),
        ("binary", True, True, False),
        ("binary", False, True, True),
        ("w32a1", True, False, True),
        ("w1a32", True, False, False),
    ],
)
def test_attention(precision, lsa, talking, other_keys):
    kind = TalkingHeadsAttention if talking else MultiHeadDotProductAttention
    fields = dict(mixing_bias=False) if talking else {}
    where = locality("both" if lsa else "none", -987.0)
    module = kind(3, locality=where, precision=precision, **fields)
    x = tokens(2, 1 if other_keys else 7, 24)
    context = tokens(2, 7, 24, seed=4) if other_keys else x
    params = randomised(module, x, context)
    if precision != "w1a32":
        params["average"]["clip"] = np.float32(0.2)
    run = jax.jit(lambda params, *args: module.apply({"params": params}, *args, mutable="intermediates"))
    y, sown = run(params, x, context if other_keys else None)
    expected, weights = attended(x, context, params, precision, lsa, talking)
    np.testing.assert_allclose(sown["intermediates"]["attention_weights"][0], weights, atol=1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    assert ("average" in params) == ("signs" in params) == (precision != "w1a32")
    if precision != "w1a32":
        on = sown["intermediates"]["attention_on"][0]
        np.testing.assert_array_equal(on, weights > 0.1)
        assert 0.1 < on.mean() < 0.9


def test_attention_weights_begin_to_count_at_half_of_an_even_look():
    """Of 8 keys, those with more than 1/16 are on; gradients reach those with 1/8 or less."""
    module, value = BinaryAverage(), np.sign(tokens(1, 8, 2, 3))
    weights = tokens(1, 2, 4, 8)
    weights = np.asarray(jax.nn.softmax(weights, -1))
    params = module.init(KEY, weights, value)["params"]
    np.testing.assert_allclose(params["clip"], 1 / 8)

    def weighed(weights):
        y, on = module.apply({"params": params}, weights, value)
        return (y * tokens(1, 4, 2, 3)).sum(), on

    grad, on = jax.jit(jax.grad(weighed, has_aux=True))(weights)
    np.testing.assert_array_equal(on, weights > 1 / 16)
    np.testing.assert_array_equal(np.asarray(grad) != 0, weights <= 1 / 8)


@pytest.mark.parametrize("precision", NOT_FLOAT)
def test_the_mlp_has_no_gelu_but_the_published_shortcuts(precision):
    module, x = MlpBlock(18, precision=precision), tokens(2, 5, 6)
    params = randomised(module, x)
    hidden = projected(x, params["Dense_0"], precision, np.tile(x, 3))
    expected = projected(hidden, params["Dense_1"], precision, hidden.reshape(2, 5, 6, 3).mean(-1))
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=2e-5)


def around_nothing(module, *args):
    """What a module with kernels of 0 returns as it begins: RPReLU of shortcuts alone, which this undoes."""

    @jax.jit
    def run():
        params = module.init(jax.random.key(0, impl="rbg"), *args)["params"]
        params["projection"]["kernel"] = jnp.zeros_like(params["projection"]["kernel"])
        return module.apply({"params": params}, *args)

    y = np.asarray(run())
    return np.where(y > 0, y, 4 * y)


def test_the_mean_of_four_tokens_goes_around_patch_merging():
    x = tokens(1, 4, 6, 8)
    by_token = PatchMerging(8, precision="binary")
    four = x.reshape(1, 2, 2, 3, 2, 8).transpose(0, 1, 3, 2, 4, 5).reshape(1, 2, 3, 32)
    four = (four - four.mean(-1, keepdims=True)) / np.sqrt(four.var(-1, keepdims=True) + 1e-5)
    mean = four.reshape(1, 2, 3, 4, 8).mean(-2)
    np.testing.assert_allclose(around_nothing(by_token, x), mean, atol=1e-5)
    twice = around_nothing(PatchMerging(16, precision="w32a1"), x)
    np.testing.assert_allclose(twice, np.concatenate([mean, mean], -1), atol=1e-5)


def test_the_mean_of_the_patch_itself_goes_around_shifted_patches():
    """Of one constant in each channel and zeros outside, views differ and the patch does not."""
    x = np.broadcast_to(np.float32([1.0, -2.0, 0.5, 3.0]), (1, 4, 4, 4))
    got = around_nothing(ShiftedPatchTokenization(8, (2, 2), precision="binary"), x)
    corner = got[0, 0, 0]
    np.testing.assert_array_equal(corner[:4], corner[4:])
    # Normed with all views: linear in the patch's own mean.
    slope = np.diff(corner[:4]) / np.diff(x[0, 0, 0])
    np.testing.assert_allclose(slope, slope[0], rtol=1e-5)
    assert slope[0] > 0.1


def test_a_depthwise_convolution_stays_float():
    module = DepthwisePooling(8, True, precision="binary")
    params = jax.eval_shape(lambda x: module.init(KEY, x, (2, 2)), tokens(1, 5, 4))["params"]
    assert set(params["depthwise"]) == {"kernel", "bias"}
    assert set(params["pointwise"]) == set(params["cls"]) == {"kernel", "move", "norm", "rprelu"}


def test_float_is_an_ordinary_layer():
    params = jax.eval_shape(linear(4, "float", jax.nn.initializers.ones, name="x").init, KEY, tokens(2, 3))
    assert set(params["params"]) == {"kernel", "bias"}
