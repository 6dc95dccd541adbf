"""Soft splits against a loop over windows, and their gradient; splits and sizes that make no map."""

import jax
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.layers.soft_split import Split, refuse_other_sizes, soft_split, splits_of, stride_of

RNG = np.random.default_rng(0)


def by_loop(x, split):
    """One window after the other, channels first in each."""
    kernel, stride, padding = split
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((len(x), rows, columns, x.shape[3] * kernel * kernel), x.dtype)
    for i in range(rows):
        for j in range(columns):
            window = padded[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, i, j] = window.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return out


@pytest.mark.parametrize("split", [(7, 4, 2), (3, 2, 1), (5, 2, 2), (3, 3, 1)])
def test_windows_and_their_gradient(split):
    split = Split(*split)
    x = RNG.normal(size=(2, 2 * split.stride, 4 * split.stride, 3)).astype(np.float32)
    run = jax.jit(lambda x: soft_split(x, split))
    y, pull = jax.vjp(run, x)
    np.testing.assert_array_equal(y, by_loop(x, split))
    # Linear, so the gradient is the transpose: <g, split(x)> = <pull(g), x> for another x.
    g, other = RNG.normal(size=y.shape), RNG.normal(size=x.shape)
    np.testing.assert_allclose(
        (g * by_loop(other, split)).sum(), (pull(g.astype(np.float32))[0] * other).sum(), rtol=1e-4, atol=1e-4
    )


def test_a_number_stands_for_so_many_of_3_2_1():
    assert splits_of(2) == splits_of(((3, 2, 1), [3, 2, 1])) == (Split(3, 2, 1),) * 2
    assert stride_of(splits_of(((7, 4, 2), (3, 2, 1)))) == 8


@pytest.mark.parametrize("given", [0, -1, (), ((3, 2),), ((3, 2, 1.0),), (3, 2, 1)])
def test_what_is_no_list_of_splits(given):
    with pytest.raises(UserError, match=r"splits=.*neither a positive number of soft splits nor three whole"):
        splits_of(given)


@pytest.mark.parametrize("triple", [(3, 2, 0), (3, 0, 1), (3, 2, 2), (2, 4, 1), (7, 4, 1)])
def test_windows_that_make_no_map_of_the_stride(triple):
    """Too narrow a border, no distance, too wide a border, both."""
    with pytest.raises(UserError, match=f"windows of {triple[0]}, {triple[1]} apart, with a border"):
        splits_of((triple,))


def test_sizes_that_the_strides_do_not_divide():
    splits = splits_of(3)
    refuse_other_sizes(64, 8, splits)
    with pytest.raises(UserError, match=r"60x64 pixels .* 8 pixels apart: the nearest size .* is 64x64"):
        refuse_other_sizes(60, 64, splits)
    with pytest.raises(UserError, match="nearest size that can is 8x8"):
        refuse_other_sizes(3, 7, splits)
