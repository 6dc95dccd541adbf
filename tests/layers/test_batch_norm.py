"""Batch normalisation against plain formulas."""

import jax
import numpy as np

from vitjax.layers.batch_norm import BatchNorm

X = np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)).astype(np.float32)


def variables():
    made = jax.tree.map(np.array, BatchNorm().init(jax.random.key(0), X))
    made["params"] = {"scale": np.linspace(0.5, 2, 7, dtype=np.float32), "bias": np.arange(7.0)}
    made["batch_stats"] = {"mean": np.full(7, 0.3), "var": np.full(7, 1.7)}
    return made


def test_training_normalises_by_the_batch_and_moves_the_running_statistics():
    before = variables()
    y, after = BatchNorm().apply(before, X, train=True, mutable=["batch_stats"])
    mean, var = X.mean((0, 1, 2), dtype=np.float64), X.var((0, 1, 2), dtype=np.float64)
    expected = (X - mean) / np.sqrt(var + 1e-5) * before["params"]["scale"] + before["params"]["bias"]
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.9 * 0.3 + 0.1 * mean, rtol=1e-6)
    unbiased = X.var((0, 1, 2), dtype=np.float64, ddof=1)  # as PyTorch's; the biased one is 0.8 % less
    np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 * 1.7 + 0.1 * unbiased, rtol=1e-6)


def test_inference_normalises_by_the_running_statistics():
    y = BatchNorm(epsilon=1e-3).apply(variables(), X)
    scale, bias = np.linspace(0.5, 2, 7), np.arange(7.0)
    np.testing.assert_allclose(y, (X - 0.3) / np.sqrt(1.7 + 1e-3) * scale + bias, atol=1e-5)


def test_initialisation_leaves_the_running_statistics_at_their_start():
    made = BatchNorm().init(jax.random.key(0), X, train=True)
    np.testing.assert_array_equal(made["batch_stats"]["mean"], np.zeros(7))
    np.testing.assert_array_equal(made["batch_stats"]["var"], np.ones(7))
