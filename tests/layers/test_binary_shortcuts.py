"""Shortcuts past binary layers on grids that are not square, and what does not fit them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.layers.binary_shortcuts import (
    mean_along,
    mean_of_neighbours,
    mean_of_windows,
    reduce_tokens,
    repeat_tokens,
    tile_channels,
)


def test_widening_tiles_and_narrowing_averages_neighbours():
    x = jnp.arange(3.0)[None]
    np.testing.assert_array_equal(tile_channels(x, 6), [[0, 1, 2, 0, 1, 2]])
    np.testing.assert_array_equal(mean_of_neighbours(jnp.float32([[0, 2, 4, 8, 1, 3]]), 3), [[1, 6, 2]])
    np.testing.assert_array_equal(tile_channels(x, 3), x)


@pytest.mark.parametrize("axis, size", [(0, 3), (1, 3), (0, 5), (1, 5)])
def test_neighbours_along_one_axis_of_a_grid(axis, size):
    grid = np.random.default_rng(0).normal(size=(2, 4, 7, 3)).astype(np.float32)
    y = mean_along(grid.reshape(2, 28, 3), (4, 7), axis, size)
    window = np.full(size, 1 / size)
    line = lambda values: np.convolve(np.pad(values, size // 2), window, "valid")
    wanted = np.apply_along_axis(line, 1 + axis, grid)
    np.testing.assert_allclose(y.reshape(grid.shape), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis, size", [(0, 3), (1, 5)])
def test_the_mean_along_an_axis_has_the_gradient_of_a_linear_map(axis, size):
    """Of a linear map f, the gradient of sum(g f(x)) at any x holds sum(g f(e)) for each unit vector e."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(1, 20, 2)).astype(np.float32)
    total = lambda x: jnp.sum(weights * mean_along(x, (4, 5), axis, size))
    found = jax.grad(total)(jnp.float32(rng.normal(size=(1, 20, 2))))
    units = jnp.eye(40).reshape(40, 1, 20, 2)
    np.testing.assert_allclose(found.reshape(-1), jax.vmap(total)(units), rtol=1e-5, atol=1e-6)


def test_windows_leave_out_what_is_left_over():
    x = jnp.arange(5.0 * 4).reshape(1, 5, 4, 1)
    np.testing.assert_array_equal(mean_of_windows(x, 2)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])


def test_reduced_tokens_go_back_to_their_windows():
    tokens = jnp.arange(24.0).reshape(1, 24, 1)  # on a grid of 4 rows and 6 columns
    reduced = reduce_tokens(tokens, (4, 6), 2)
    np.testing.assert_array_equal(reduced[0, :, 0], [3.5, 5.5, 7.5, 15.5, 17.5, 19.5])
    repeated = repeat_tokens(reduced, (4, 6), 2).reshape(4, 6)
    np.testing.assert_array_equal(repeated[:2, :2], 3.5)
    np.testing.assert_array_equal(repeated[3], [15.5, 15.5, 17.5, 17.5, 19.5, 19.5])


def test_what_does_not_fit_is_refused_with_its_sizes():
    x = jnp.zeros((1, 24, 6))
    with pytest.raises(UserError, match=r"widens from 6 to 16 channels .* multiple .* mlp_dim"):
        tile_channels(x, 16)
    with pytest.raises(UserError, match=r"widens from 6 to 3 channels"):
        tile_channels(x, 3)
    with pytest.raises(UserError, match=r"narrows from 6 to 4 channels"):
        mean_of_neighbours(x, 4)
    with pytest.raises(UserError, match=r"4x4 tokens, but the grid is 4x6: both .* crop"):
        reduce_tokens(x, (4, 6), 4)
