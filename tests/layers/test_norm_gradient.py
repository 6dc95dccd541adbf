import jax
import jax.numpy as jnp
import numpy as np

from vitjax.layers.norm import layer_norm


def by_the_book(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


def test_closed_form_equals_the_derivative_of_each_operation():
    rng = np.random.default_rng(0)
    x, g = rng.normal(3, 2, (2, 4, 5, 48)).astype(np.float32)
    scale, bias = rng.normal(1, 0.3, (2, 48)).astype(np.float32)
    for function in (layer_norm, by_the_book):
        y, vjp = jax.vjp(lambda *a, f=function: f(*a, 1e-6), x, scale, bias)
        results = [y, *vjp(jnp.asarray(g))]
        if function is layer_norm:
            ours = results
    for a, b in zip(ours, results, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
