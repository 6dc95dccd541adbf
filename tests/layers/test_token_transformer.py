"""Performer attention against the matrix it estimates and against plain formulas; residuals; dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.layers.token_transformer import PerformerAttention, TokenLayer, positive_features

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(module, x):
    """Variables away from initialisation, small enough for exp."""
    shapes = jax.eval_shape(module.init, KEY, x)
    return jax.tree.map(lambda a: 0.3 * normal(*a.shape), shapes)


def test_features_estimate_the_kernel_of_the_softmax():
    """Without bias: their mean over many directions is exp(q k)."""
    q, k = 0.5 * normal(1, 4), 0.5 * normal(1, 4)
    directions = normal(200_000, 4)
    estimate = (positive_features(q, directions) @ positive_features(k, directions).T).item()
    np.testing.assert_allclose(estimate, np.exp(q @ k.T).item(), rtol=2e-2)


def test_a_performer_is_attention_with_the_weights_it_shows():
    module = PerformerAttention(1, True, head_dim=8, feature_ratio=0.5)
    x = 0.5 * normal(2, 6, 12)
    variables = drawn(module, x)
    assert "intermediates" not in variables
    y, seen = jax.jit(lambda v: module.apply(v, x, mutable=["intermediates"]))(variables)
    (weights,), (logits,) = (seen["intermediates"][f"attention_{name}"] for name in ("weights", "logits"))
    assert weights.shape == logits.shape == (2, 1, 6, 6)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(weights, jax.nn.softmax(logits, -1), rtol=1e-3)
    params = variables["params"]
    value = x @ params["value"]["kernel"][:, 0] + params["value"]["bias"][0]
    expected = value + (weights[:, 0] @ value) @ params["out"]["kernel"][0] + params["out"]["bias"]
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), y, rtol=1e-5, atol=1e-6)


def test_directions_are_orthogonal_and_sqrt_m_long_and_no_parameters():
    module = PerformerAttention(1, True, head_dim=8)
    init = jax.jit(module.init)
    variables = init(KEY, normal(1, 4, 6))
    directions = variables["random_features"]["directions"]
    np.testing.assert_allclose(directions @ directions.T, 4 * np.eye(4), atol=1e-5)
    assert set(variables) == {"params", "random_features"}
    assert set(variables["params"]) == {"query", "key", "value", "out"}
    others = init(jax.random.key(1), normal(1, 4, 6))["random_features"]["directions"]
    assert np.abs(directions - others).max() > 0.1


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_a_layer_has_no_residual_of_its_input(kind):
    """With a silent projection and MLP, values are all that is left."""
    layer = TokenLayer(kind, 8)
    x = normal(2, 6, 12)
    variables = drawn(layer, x)
    params = variables["params"]
    attention = params["MultiHeadDotProductAttention_0"]
    for silent in (attention["out"], params["MlpBlock_0"]["Dense_1"]):
        silent.update(jax.tree.map(np.zeros_like, silent))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * params["LayerNorm_0"]["scale"] + params["LayerNorm_0"]["bias"]
    value = normed @ attention["value"]["kernel"][:, 0]
    if kind == "performer":
        value = value + attention["value"]["bias"][0]
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), value, rtol=1e-3, atol=1e-4)


def test_dropout_is_on_attention_and_mlp_in_training_only():
    layer = TokenLayer("performer", 8, dropout=0.5)
    x = normal(1, 400, 6)
    variables = drawn(layer, x)
    run = jax.jit(lambda variables: layer.apply(variables, x, train=True, rngs={"dropout": KEY}))
    dropped = run(variables)
    silent = jax.tree.map(np.zeros_like, variables["params"]["MlpBlock_0"]["Dense_1"])
    of_attention = {**variables, "params": {**variables["params"], "MlpBlock_0": {
        **variables["params"]["MlpBlock_0"], "Dense_1": silent}}}  # fmt: skip
    by_attention = run(of_attention)
    kept = np.isclose(by_attention, values(variables["params"], x), atol=1e-6).mean()
    assert 0.45 < kept < 0.55  # where attention is dropped, values remain
    assert not np.allclose(dropped, by_attention)  # and the MLP is not always dropped
    assert 0.45 < np.isclose(dropped, by_attention, atol=1e-7).mean() < 0.55


def values(params, x):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    value = params["MultiHeadDotProductAttention_0"]["value"]
    normed = normed * params["LayerNorm_0"]["scale"] + params["LayerNorm_0"]["bias"]
    return normed @ value["kernel"][:, 0] + value["bias"][0]


def test_features_are_float32_in_bfloat16():
    module = PerformerAttention(1, True, jnp.bfloat16, head_dim=8)
    x = normal(2, 6, 12)
    variables = drawn(module, x)
    text = str(jax.make_jaxpr(module.apply)(variables, x))
    exps = [line for line in text.splitlines() if " = exp " in line]
    assert len(exps) == 2 and all("f32[" in line for line in exps)
    y = jax.jit(module.apply)(variables, x)
    assert y.dtype == jnp.float32
    expected = jax.jit(PerformerAttention(1, True, head_dim=8).apply)(variables, x)
    assert 1e-4 < np.abs(y - expected).max() / np.abs(expected).max() < 3e-2
