"""Small models, the same for all tests here: shapes, and parameters far from initialisation."""

import functools

import jax
import numpy as np
import pytest

from vitjax import models


@functools.cache
def shapes(size=32, **fields):
    """Abstract parameters of a ViT of width 32 and two blocks, patch 8, for square images of `size`."""
    model = models.create("vit_mu8", **{"num_classes": 5, "depth": 2, **fields})
    image = jax.ShapeDtypeStruct((1, *((size, size) if isinstance(size, int) else size), 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def drawn(abstract, seed=0):
    """Parameters drawn from a normal distribution."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract)


def same(a, b):
    """Equal trees of equal bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def params():
    return drawn(shapes())
