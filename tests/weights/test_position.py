"""Resizing of position embeddings, beyond the golden vectors."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vitjax.errors import UserError
from vitjax.weights.position import METHODS, resize


@pytest.mark.parametrize("old, new", [(7, 12), (14, 24), (16, 24), (24, 14), (1, 3), (3, 1)])
def test_corners_are_those_of_scipy_zoom(old, new):
    grid = np.random.default_rng(0).normal(size=(old, old, 3))
    reference = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    ours = resize(grid.reshape(1, -1, 3), (new, new)).reshape(new, new, 3)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-13)  # seen: 4e-15


@pytest.mark.parametrize("old, new", [(28, 14), (24, 22)])
def test_corners_stay_where_scipy_steps_over_the_edge(old, new):
    grid = np.random.default_rng(0).normal(size=(old, old, 3))
    ours = resize(grid.reshape(1, -1, 3), (new, new)).reshape(new, new, 3)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        np.testing.assert_allclose(ours[corner], grid[corner], rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_stays_and_the_same_grid_is_untouched(method):
    posemb = np.full((1, 2 + 12, 4), 0.3, np.float32)
    posemb[:, :2] = [[[1], [2]]]
    ours = resize(posemb, (6, 2), prefix=2, old_grid=(3, 4), method=method)
    assert ours.shape == (1, 14, 4) and ours.dtype == np.float32
    np.testing.assert_array_equal(ours[:, :2], posemb[:, :2])
    np.testing.assert_allclose(ours[:, 2:], 0.3, rtol=2e-7)
    assert resize(posemb, (3, 4), prefix=2, old_grid=(3, 4), method=method) is posemb


def test_bfloat16_stays_bfloat16():
    posemb = np.asarray(jnp.linspace(0, 1, 9, dtype=jnp.bfloat16)).reshape(1, 9, 1)
    ours = resize(posemb, (5, 5), method="bilinear")
    assert ours.dtype == jnp.bfloat16 and ours.shape == (1, 25, 1)


@pytest.mark.parametrize(
    "shape, new, more, says",
    [
        ((1, 16, 2), (7, 7), dict(method="bicubik"), "Did you mean 'bicubic'"),
        ((1, 15, 2), (7, 7), {}, "15 positions .* is not square"),
        ((1, 17, 2), (7, 7), {}, "17 positions .* is not square"),
        ((1, 16, 2), (7, 7), dict(old_grid=(3, 5)), "no grid of 3 x 5"),
        ((1, 16, 2), (7,), {}, "new grid"),
        ((1, 16, 2), (0, 7), {}, "new grid"),
        ((16, 2), (7, 7), {}, r"\(16, 2\)"),
        ((1, 1, 2), (7, 7), dict(prefix=1), "more than 1"),
    ],
)
def test_what_does_not_go_together_is_refused(shape, new, more, says):
    with pytest.raises(UserError, match=says):
        resize(np.zeros(shape, np.float32), new, **more)
