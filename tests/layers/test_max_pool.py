"""Max-pooling against XLA's own windows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.layers.pooling import max_pool


@pytest.mark.parametrize("size", [(8, 9), (1, 2), (5, 6)])
def test_value_and_gradient_are_those_of_the_windows(size):
    x = np.random.default_rng(0).normal(-1, 1, (2, *size, 3)).astype(np.float32)
    weights = jnp.arange(1.0, 1.0 + 3 * (-(-size[0] // 2)) * (-(-size[1] // 2))).reshape(1, -1)
    windows = lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    product = lambda pool: jax.grad(lambda x: jnp.sum(pool(x).reshape(2, -1) * weights))
    np.testing.assert_array_equal(max_pool(x), windows(x))
    np.testing.assert_allclose(product(max_pool)(x), product(windows)(x), rtol=1e-6)


def test_a_border_of_zeros_counts_where_all_pixels_are_negative():
    x = jnp.full((1, 4, 4, 1), -2.0)
    assert max_pool(x).min() == -2
    np.testing.assert_array_equal(max_pool(x, border=0.0)[0, :, :, 0], [[0, 0], [0, -2]])
