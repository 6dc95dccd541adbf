"""Windows of a map: cutting, shifting, which tokens may meet, which entry of the bias is whose."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.layers.patch_merging import PatchMerging
from vitjax.layers.window_attention import (
    APART,
    WindowAttention,
    WindowBlock,
    from_windows,
    relative_positions,
    shift_mask,
    to_windows,
)

KEY = jax.random.key(0)
SIZES = [
    ((8, 8), (4, 4), (2, 2)),
    ((6, 9), (3, 3), (1, 1)),
    ((4, 8), (4, 4), (0, 2)),
    ((6, 8), (2, 4), (1, 2)),
]


def numbered(grid):
    """A map `[1, h, w, 2]` of the places (row, column) of its tokens."""
    return np.stack(np.mgrid[: grid[0], : grid[1]], axis=-1)[None]


@pytest.mark.parametrize(("grid", "window", "shift"), SIZES)
def test_windows_are_blocks_of_the_map_and_go_back(grid, window, shift):
    x = numbered(grid)
    windows = np.asarray(to_windows(jnp.asarray(np.concatenate([x, x + 100])), window))
    across = grid[1] // window[1]
    for number, tokens in enumerate(windows[: len(windows) // 2]):
        first = np.array([number // across * window[0], number % across * window[1]])
        expected = [first + place for place in itertools.product(range(window[0]), range(window[1]))]
        np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(windows[len(windows) // 2 :], windows[: len(windows) // 2] + 100)
    np.testing.assert_array_equal(from_windows(windows, window, grid), np.concatenate([x, x + 100]))


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (2, 4)])
def test_a_relative_position_is_an_offset(window):
    """Pairs share an entry of the table exactly if they lie to each other alike; offsets go row by row."""
    places = list(itertools.product(range(window[0]), range(window[1])))
    offsets = sorted({(a[0] - b[0], a[1] - b[1]) for a in places for b in places})
    assert len(offsets) == (2 * window[0] - 1) * (2 * window[1] - 1)
    found = relative_positions(window)
    for (n, a), (m, b) in itertools.product(enumerate(places), repeat=2):
        assert offsets[found[n, m]] == (a[0] - b[0], a[1] - b[1])


@pytest.mark.parametrize(("grid", "window", "shift"), SIZES)
def test_tokens_meet_if_the_shift_has_left_them_side_by_side(grid, window, shift):
    """Two tokens of a window of the rolled map meet where they are as far apart as in the map itself."""
    places = np.roll(numbered(grid), (-shift[0], -shift[1]), (1, 2))
    windows = np.asarray(to_windows(places, window))
    here = np.array(list(itertools.product(range(window[0]), range(window[1]))))
    apart = windows[:, :, None] - windows[:, None] != here[:, None] - here
    mask = shift_mask(grid, window, shift)
    np.testing.assert_array_equal(mask, np.where(apart.any(-1), APART, 0))
    assert (mask != 0).any() and (mask == 0).any()


def drawn(module, *args, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 2, shapes)


@pytest.mark.parametrize("shift", [(0, 0), (1, 1)])
def test_a_block_sees_its_windows_and_no_more(shift):
    """The derivative of one token by all others is zero exactly outside its window of the rolled map."""
    grid, window = (6, 6), (3, 3)
    block = WindowBlock(2, 8, window=window, shift=shift)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, *grid, 8)).astype(np.float32))
    params = drawn(block, x)
    seen = jax.jit(jax.jacobian(lambda x: block.apply({"params": params}, x)[0].sum(-1)))(x)
    seen = np.abs(seen[0, :, :, 0]).max(-1) > 1e-7  # [h, w, h, w]
    rows, columns = ((np.arange(6) - s) // 3 for s in shift)  # -1: the part that rolling brings to the end
    of_token = rows[:, None] * 10 + columns
    np.testing.assert_array_equal(seen, of_token[:, :, None, None] == of_token)


def test_what_attention_shows():
    """Logits and weights of every window; the bias is added to logits that are scaled already."""
    module = WindowAttention(2, window=(2, 2), shift=(1, 1), grid=(4, 4))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 4, 6)).astype(np.float32))
    params = drawn(module, x)
    bias = params["relative_position_bias"]
    for kernel in ("query", "key"):
        params[kernel] = jax.tree.map(np.zeros_like, params[kernel])
    apply = jax.jit(lambda params: module.apply({"params": params}, x, mutable="intermediates")[1])
    sown = apply(params)["intermediates"]
    logits = bias[relative_positions((2, 2))].transpose(2, 0, 1) + shift_mask((4, 4), (2, 2), (1, 1))[:, None]
    np.testing.assert_allclose(sown["attention_logits"][0], np.concatenate([logits, logits]), rtol=1e-6)
    np.testing.assert_allclose(
        sown["attention_weights"][0], jax.nn.softmax(np.concatenate([logits, logits])), atol=1e-6
    )


def test_merging_joins_tokens_column_by_column():
    module = PatchMerging(5)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32))
    params = drawn(module, x)
    y = jax.jit(module.apply)({"params": params}, x)
    four = np.concatenate([x[:, 2, 4], x[:, 3, 4], x[:, 2, 5], x[:, 3, 5]], axis=-1)
    normed = (four - four.mean(-1, keepdims=True)) / np.sqrt(four.var(-1, keepdims=True) + 1e-5)
    expected = (normed * params["norm"]["scale"] + params["norm"]["bias"]) @ params["projection"]["kernel"]
    np.testing.assert_allclose(y[:, 1, 2], expected, atol=1e-5)
    assert y.shape == (2, 2, 3, 5)
