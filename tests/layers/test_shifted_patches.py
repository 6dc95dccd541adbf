"""Shifted views against their definition, pooling of tokens, and what cannot be shifted or pooled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.shifted_patches import ShiftedPatchTokenization, shifted_views, shifts_of
from vitjax.layers.token_pooling import ShiftedPatchPooling

KEY = jax.random.key(0)
CARDINAL = [(0, -1), (0, 1), (-1, 0), (1, 0)]
DIAGONAL = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


@pytest.mark.parametrize(
    ("directions", "looks"),
    [("diagonal", DIAGONAL), ("cardinal", CARDINAL), ("all", CARDINAL + DIAGONAL)],
)
def test_views_look_where_they_say(directions, looks):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype("f")
    down, across = 2, 3
    views = shifted_views(x, (down, across), directions)
    assert views.shape == (2, 5, 7, 3 * (1 + len(looks)))
    for v, (di, dj) in enumerate([(0, 0), *looks]):
        for i in range(5):
            for j in range(7):
                row, column = i + di * down, j + dj * across
                inside = 0 <= row < 5 and 0 <= column < 7
                seen = x[:, row, column] if inside else np.zeros((2, 3))
                np.testing.assert_array_equal(views[:, i, j, 3 * v : 3 * v + 3], seen)


@pytest.mark.parametrize(
    ("patch", "ratio", "shifts"),
    [((5, 5), 0.5, (2, 2)), ((8, 4), 0.25, (2, 1)), ((2, 2), 1.0, (2, 2)), ((16, 16), 0.3, (4, 4))],
)
def test_shifts_are_rounded_down(patch, ratio, shifts):
    assert shifts_of(patch, ratio) == shifts


@pytest.mark.parametrize(("patch", "ratio"), [(1, 0.5), (4, 0.2), (4, 0.0), (4, -0.5), (4, 1.5)])
def test_a_shift_of_nothing_is_refused_where_the_model_is_made(patch, ratio):
    with pytest.raises(UserError, match=rf"spt_ratio={ratio} of a patch of {patch}x{patch} pixels"):
        models.create("sl_vit", patch_size=patch, spt_ratio=ratio)


def test_no_shift_reaches_outside_of_the_model():
    """Patches of a ratio of one see the whole patch beside them, of a map as small as one patch as well."""
    tokens = ShiftedPatchTokenization(6, (4, 4), "all", 1.0)
    y, _ = tokens.init_with_output(KEY, jnp.ones((1, 4, 4, 3)))
    assert y.shape == (1, 1, 1, 6) and np.isfinite(y).all()


def test_pooling_keeps_a_rectangular_grid_in_rows():
    """Its patches are those of a tokenization of the map; the class token is apart from them."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 1 + 4 * 6, 5)).astype("f")
    pooling = ShiftedPatchPooling(10)
    y, variables = pooling.init_with_output(KEY, tokens, (4, 6))
    params = variables["params"]
    assert set(params) == {"norm", "projection", "cls"}
    map_ = tokens[:, 1:].reshape(2, 4, 6, 5)
    patches = {name: params[name] for name in ("norm", "projection")}
    pooled = ShiftedPatchTokenization(10, (2, 2)).apply({"params": patches}, map_)
    np.testing.assert_allclose(y[:, 1:], pooled.reshape(2, 6, 10), atol=1e-6)
    cls = tokens[:, 0] @ params["cls"]["kernel"] + params["cls"]["bias"]
    np.testing.assert_allclose(y[:, 0], cls, atol=1e-5)
    without = ShiftedPatchPooling(10).apply({"params": patches}, tokens[:, 1:], (4, 6))
    np.testing.assert_array_equal(without, y[:, 1:])


def test_what_cannot_be_pooled():
    with pytest.raises(UserError, match="this one is 3x4: both sides must be even"):
        ShiftedPatchPooling(10).init(KEY, jnp.ones((1, 13, 5)), (3, 4))
    with pytest.raises(ValueError, match="12 tokens do not fill a grid of 4x4"):
        ShiftedPatchPooling(10).init(KEY, jnp.ones((1, 12, 5)), (4, 4))
