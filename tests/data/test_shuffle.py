"""The shuffle that is computed place by place: a permutation each epoch, as random as drawn ones."""

import itertools

import jax
import numpy as np
import pytest

from vitjax.data.shuffle import MOST, Seed, shuffled


def order(size, epoch=0, seed=0):
    places = np.arange(size, dtype=np.uint32)
    return shuffled(places, np.full(size, epoch, np.uint32), Seed.of(seed), size)


@pytest.mark.parametrize("size", [*range(1, 70), 127, 128, 129, 1000, 50_000])
def test_every_epoch_is_a_permutation(size):
    for epoch in (0, 1, 2**31):
        np.testing.assert_array_equal(np.sort(order(size, epoch, seed=2**62 + 7)), np.arange(size))


def test_the_largest_set_stays_in_range():
    """Sums of two indices do not overflow: different places of the largest set give different examples."""
    places = np.concatenate([np.arange(1000), MOST - 1 - np.arange(1000)]).astype(np.uint32)
    found = shuffled(places, np.zeros_like(places), Seed.of(1), MOST)
    assert len(set(found.tolist())) == 2000 and found.max() < MOST


@pytest.mark.parametrize("size", [5, 1797])
def test_numpy_and_jax_agree(size):
    places, epochs = np.divmod(np.arange(3 * size, dtype=np.uint32), np.uint32(3))
    seed = Seed.of(2**40 + 3)
    on_device = jax.jit(lambda places, epochs, seed: shuffled(places, epochs, seed, size))
    np.testing.assert_array_equal(on_device(places, epochs, seed), shuffled(places, epochs, seed, size))


def test_a_small_set_sees_every_order_equally_often():
    """All 24 orders of four things, over epochs and over seeds: chi square with 23 degrees of freedom.

    Its mean is 23 and its deviation 6.8; 60 is passed once in thirty thousand times.
    """
    orders = {permutation: number for number, permutation in enumerate(itertools.permutations(range(4)))}
    epochs = np.repeat(np.arange(4800, dtype=np.uint32), 4)
    places = np.tile(np.arange(4, dtype=np.uint32), 4800)
    by_epoch = shuffled(places, epochs, Seed.of(11), 4).reshape(-1, 4)
    by_seed = np.stack([order(4, seed=seed) for seed in range(480)])
    for drawn in (by_epoch, by_seed):
        counts = np.bincount([orders[tuple(row)] for row in drawn.tolist()], minlength=24)
        expected = len(drawn) / 24
        assert ((counts - expected) ** 2 / expected).sum() < 60


def test_orders_of_a_large_set_look_drawn():
    """Fixed points, neighbours that stay neighbours, and rank correlation of one epoch with the next.

    For drawn permutations of N things the first is Poisson of mean 1, the second about Poisson of mean 2, the
    last normal with deviation 1 / sqrt(N - 1); over 40 epochs sums stay within 5 deviations.
    """
    size, epochs = 3001, 40
    orders = [order(size, epoch, seed=5).astype(np.int64) for epoch in range(epochs + 1)]
    fixed = sum((one == np.arange(size)).sum() for one in orders[:epochs])
    assert abs(fixed - epochs) < 5 * np.sqrt(epochs)
    neighbours = sum((np.abs(np.diff(one)) == 1).sum() for one in orders[:epochs])
    assert abs(neighbours - 2 * epochs) < 5 * np.sqrt(2 * epochs)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(orders)]
    assert abs(np.sum(correlation)) < 5 * np.sqrt(epochs / (size - 1))
    assert max(map(abs, correlation)) < 5 / np.sqrt(size - 1)


def test_a_batch_takes_from_everywhere():
    """Examples of first batches, by tenth of the set, of 200 epochs: chi square, 9 degrees of freedom."""
    places = np.tile(np.arange(50, dtype=np.uint32), 200)
    epochs = np.repeat(np.arange(200, dtype=np.uint32), 50)
    counts = np.bincount(shuffled(places, epochs, Seed.of(3), 50_000) // 5000, minlength=10)
    assert ((counts - 1000) ** 2 / 1000).sum() < 9 + 5 * np.sqrt(18)


def test_both_words_of_the_seed_count():
    assert len({tuple(order(100, seed=seed).tolist()) for seed in (0, 1, 2**32, 2**33, 2**62)}) == 5
