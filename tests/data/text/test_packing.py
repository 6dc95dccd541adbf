"""Rows: the layout to the token, first fit as the plainest loop does it, little padding."""

import types

import numpy as np
import pytest

from vitjax.data.text import packing
from vitjax.errors import UserError

IDS = types.SimpleNamespace(pad=9, eos=7, bos=8)


def test_two_pairs_share_a_row():
    row = packing.row(
        np.array([11, 12, 7, 13, 7], np.uint16), np.array([3, 2]),
        np.array([21, 7, 22, 23, 7], np.uint16), np.array([2, 3]), 6, IDS,
    )  # fmt: skip
    assert tuple(row) == packing.KEYS and {value.dtype for value in row.values()} == {np.dtype(np.int32)}
    assert {key: value.tolist() for key, value in row.items()} == {
        "inputs": [11, 12, 7, 13, 7, 9],
        "inputs_positions": [0, 1, 2, 0, 1, 0],
        "inputs_segments": [1, 1, 1, 2, 2, 0],
        "decoder_inputs": [8, 21, 8, 22, 23, 9],
        "targets": [21, 7, 22, 23, 7, 9],
        "targets_positions": [0, 1, 0, 1, 2, 0],
        "targets_segments": [1, 1, 2, 2, 2, 0],
    }


def test_one_pair_alone():
    row = packing.one_row(np.array([11, 12]), np.array([21]), 3, IDS)
    assert row["inputs"].tolist() == [11, 12, 7] and row["targets"].tolist() == [21, 7, 9]
    assert row["decoder_inputs"].tolist() == [8, 21, 9] and row["targets_segments"].tolist() == [1, 1, 0]
    unknown = packing.one_row(np.array([11]), np.array([], int), 3, IDS)
    assert unknown["decoder_inputs"].tolist() == [8, 9, 9]
    with pytest.raises(UserError, match="a sentence of 4 tokens, its end counted, does not fit 3"):
        packing.one_row(np.array([11, 12, 13]), np.array([21]), 3, IDS)


def first_fit(sources, targets, length, order):
    rooms, rows = [], np.zeros(len(sources), int)
    for pair in order:
        fits = [row for row, (s, t) in enumerate(rooms) if s >= sources[pair] and t >= targets[pair]]
        rows[pair] = fits[0] if fits else len(rooms)
        if not fits:
            rooms.append([length, length])
        rooms[rows[pair]][0] -= sources[pair]
        rooms[rows[pair]][1] -= targets[pair]
    return rows


def rows_of(packed):
    rows = np.zeros(len(packed.pairs), int)
    rows[packed.pairs] = np.repeat(np.arange(len(packed)), np.diff(packed.ends, prepend=0))
    return rows


@pytest.mark.parametrize("length", [20, 33])
def test_it_is_first_fit(length):
    rng = np.random.default_rng(length)
    sources = rng.integers(2, 21, 400)
    targets = (sources + rng.integers(-4, 5, 400)).clip(2, 20)
    packed = packing.pack(sources, targets, length, seed=3)
    order = np.random.default_rng([3, 400]).permutation(400)
    assert (rows_of(packed) == first_fit(sources, targets, length, order)).all()


def test_every_pair_is_in_one_row_and_rows_are_full():
    rng = np.random.default_rng(0)
    sources = rng.gamma(9, 1.6, 4000).astype(int) + 3
    targets = (sources + rng.integers(-3, 4, 4000)).clip(2, None)
    length = 64
    packed = packing.pack(sources, targets, length, seed=1)
    assert sorted(packed.pairs) == list(range(4000)) and packed.ends[-1] == 4000
    starts = packed.ends - np.diff(packed.ends, prepend=0)
    for side in (sources, targets):
        assert np.add.reduceat(side[packed.pairs], starts).max() <= length
    assert 1 - (sources.sum() + targets.sum()) / (2 * length * len(packed)) < 0.08


def test_the_seed_says_which_pairs_share_a_row():
    lengths = np.random.default_rng(0).integers(2, 20, 200)
    one, same, other = (packing.pack(lengths, lengths, 40, seed) for seed in (1, 1, 2))
    assert (one.pairs == same.pairs).all() and (one.ends == same.ends).all()
    assert (one.pairs != other.pairs).any()


def test_a_row_for_each_pair():
    packed = packing.alone(3)
    assert packed.pairs.tolist() == [0, 1, 2] and packed.ends.tolist() == [1, 2, 3]
