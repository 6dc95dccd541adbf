"""The parts against plain formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.drop_path import DropPath, linear_rates
from vitjax.layers.norm import LayerNorm
from vitjax.layers.patches import PatchEmbedding

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_patch_embedding_is_a_convolution():
    image = normal(2, 24, 32, 3)
    ours = PatchEmbedding(5, (8, 16))
    params = ours.init(KEY, image)["params"]
    params["bias"] = normal(5)
    conv = nn.Conv(5, (8, 16), strides=(8, 16), padding="VALID")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, conv.init(KEY, image)["params"])
    y = ours.apply({"params": params}, image)
    assert y.shape == (2, 3, 2, 5)
    np.testing.assert_allclose(y, conv.apply({"params": params}, image), atol=1e-5)


@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_that_of_flax(cross):
    """Same parameters, same result: official files mean the same thing here."""
    x = normal(2, 5, 12)
    context = normal(2, 7, 12) if cross else None
    flax = nn.MultiHeadDotProductAttention(3)
    params = flax.init(KEY, x, x)["params"]
    params = jax.tree.map(lambda a: normal(*a.shape), params)
    y = MultiHeadDotProductAttention(3).apply({"params": params}, x, context)
    np.testing.assert_allclose(
        y, flax.apply({"params": params}, x, context if cross else x), rtol=1e-4, atol=1e-3
    )
    nobias = MultiHeadDotProductAttention(3, qkv_bias=False).init(KEY, x)["params"]
    assert {name for name, part in nobias.items() if "bias" in part} == {"out"}


def test_layer_norm_keeps_its_digits_far_from_zero():
    """Where E[x^2] - E[x]^2 has none left."""
    x = np.asarray(normal(3, 64)) + np.float32(3000)
    module = LayerNorm()
    variables = module.init(KEY, x)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(module.apply(variables, x), exact, atol=1e-3)


def test_layer_norm_statistics_are_float32():
    x = normal(3, 64).astype(jnp.bfloat16)
    module = LayerNorm(dtype=jnp.bfloat16)
    variables = module.init(KEY, x)
    y = module.apply(variables, x)
    assert y.dtype == jnp.bfloat16
    exact = LayerNorm().apply(variables, x.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_layer_norm_gradient():
    x, g = normal(3, 5, 16), normal(3, 5, 16)
    ours, flax = LayerNorm(), nn.LayerNorm(use_fast_variance=False)
    params = {"scale": normal(16), "bias": normal(16)}
    loss = lambda module: lambda p, x: jnp.sum(module.apply({"params": p}, x) * g)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.grad(loss(ours), argnums=(0, 1))(params, x),
        jax.grad(loss(flax), argnums=(0, 1))(params, x),
    )


def test_rates_grow_linearly():
    assert linear_rates(0.3, 4) == pytest.approx((0, 0.1, 0.2, 0.3))
    assert linear_rates(0.3, 1) == (0,)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_drop_path_drops_whole_examples(rescale, traced):
    branch = jnp.ones((2000, 3, 2))
    rate = jnp.float32(0.25) if traced else 0.25
    y = np.asarray(DropPath(rescale).apply({}, branch, rate, train=True, rngs={"dropout": KEY}))
    values = np.unique(y)
    np.testing.assert_allclose(values, [0, 1 / 0.75 if rescale else 1], rtol=1e-6)
    assert np.all(y == y[:, :1, :1])
    assert np.mean(y[:, 0, 0] == 0) == pytest.approx(0.25, abs=0.03)  # 3 deviations
    np.testing.assert_array_equal(DropPath(rescale).apply({}, branch, rate, train=False), branch)
