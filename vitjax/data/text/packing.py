"""Sentence pairs in rows of fixed length: the batch layout, and which pairs share a row.

A row has `length` tokens of source and as many of target. Segment k of the one belongs to segment k of the
other; segments count from 1, 0 is padding, and positions begin at 0 in each. Of sources "ab" and "c", targets
"x" and "yz", E the end, B the beginning and . padding:

    inputs           a b E c E .      targets           x E y z E .
    inputs_positions 0 1 2 0 1 0      targets_positions 0 1 0 1 2 0
    inputs_segments  1 1 1 2 2 0      targets_segments  1 1 2 2 2 0
                                      decoder_inputs    B x B y z .
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError

KEYS = (
    "inputs",
    "inputs_positions",
    "inputs_segments",
    "decoder_inputs",
    "targets",
    "targets_positions",
    "targets_segments",
)
FEWEST = 2  # tokens of a sentence: one and the end


def one_row(
    source: np.ndarray, target: np.ndarray, length: int, vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
    """The row of one pair alone, unpacked.

    Args:
      source: pieces of a sentence without an end, int `[S]`.
      target: those of its translation, int `[T]`; empty where it is not known yet.
      length: of the row, more than S and T.
      vocabulary: says which pieces are end, beginning and padding.

    Returns:
      `KEYS`, int32 `[length]` each.

    Raises:
      UserError: a sentence that is too long.
    """
    ended = [np.append(each, vocabulary.eos).astype(np.int32) for each in (source, target)]
    longest = max(map(len, ended))
    if longest > length:
        raise UserError(f"a sentence of {longest} tokens, its end counted, does not fit {length}.")
    (inputs, targets), one = ended, np.ones(1, np.int64)
    return row(inputs, one * len(inputs), targets, one * len(targets), length, vocabulary)


def row(
    inputs: np.ndarray,
    inputs_lengths: np.ndarray,
    targets: np.ndarray,
    targets_lengths: np.ndarray,
    length: int,
    vocabulary: Vocabulary,
) -> dict[str, np.ndarray]:
    """The row of pairs whose tokens lie one after another, each with its end.

    Args:
      inputs: tokens of the sources.
      inputs_lengths: how many tokens each source has, `[K]`.
      targets: tokens of the targets.
      targets_lengths: how many tokens each target has, `[K]`.
      length: of the row.
      vocabulary: says which pieces are beginning and padding.

    Returns:
      `KEYS`, int32 `[length]` each.
    """
    inputs_positions, inputs_segments = _places(inputs_lengths)
    targets_positions, targets_segments = _places(targets_lengths)
    before = np.concatenate([targets[:1], targets[:-1]])
    shifted = np.where(targets_positions == 0, vocabulary.bos, before)
    padded = lambda tokens, fill: _padded(tokens, length, fill)
    return {
        "inputs": padded(inputs, vocabulary.pad),
        "inputs_positions": padded(inputs_positions, 0),
        "inputs_segments": padded(inputs_segments, 0),
        "decoder_inputs": padded(shifted, vocabulary.pad),
        "targets": padded(targets, vocabulary.pad),
        "targets_positions": padded(targets_positions, 0),
        "targets_segments": padded(targets_segments, 0),
    }


def _places(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments of tokens in segments of these lengths."""
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    return positions, np.repeat(np.arange(1, len(lengths) + 1), lengths)


def _padded(tokens: np.ndarray, length: int, fill: int) -> np.ndarray:
    out = np.full(length, fill, np.int32)
    out[: len(tokens)] = tokens
    return out


class Packing(NamedTuple):
    """Which pairs share a row.

    Attributes:
      pairs: numbers of pairs, the first row's first, int64 `[N]`.
      ends: where each row ends in `pairs`, int64 `[R]`.
    """

    pairs: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)


def pack(
    sources: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int, seed: int = 0
):
    """Puts pairs, in an order drawn from the seed, each into the first row that has room for both its sides.

    All rows stay open until they are full. Rows are kept by the room they have left, and for each room on the
    source side the oldest row is known for every room on the target side, so a pair costs O(length), whatever
    the number of rows: about ten microseconds.

    Args:
      sources: tokens of each source, its end counted, int `[N]`.
      targets: those of each target, `[N]`.
      length: of a row, on either side; no sentence is longer.
      seed: of the order.

    Returns:
      A `Packing` with every pair once. It is a function of the arguments alone.
    """
    sources, targets = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
    order = np.random.default_rng([seed, len(sources)]).permutation(len(sources))
    rows = _OpenRows(length)
    placed = np.fromiter(
        map(rows.place, sources[order].tolist(), targets[order].tolist()), np.int64, len(order)
    )
    by_row = np.argsort(placed, kind="stable")
    return Packing(order[by_row], np.cumsum(np.bincount(placed, minlength=rows.count)))


def alone(count: int) -> Packing:
    """Every pair in a row of its own, in their order."""
    return Packing(np.arange(count), np.arange(1, count + 1))


class _OpenRows:
    """The rows that have room left, for first fit."""

    NONE = np.iinfo(np.int64).max

    def __init__(self, length: int):
        self.count = 0
        self._length = length
        self._rows: dict[tuple[int, int], list[int]] = {}  # heaps of row numbers by room (source, target)
        # The oldest row with room s, t exactly; and with room s and at least t, by [t, s]: what is searched.
        self._exact = np.full((length + 1, length + 1), self.NONE)
        self._at_least = np.full((length + 1, length + 1), self.NONE)
        self._target_room: list[int] = []

    def place(self, source: int, target: int) -> int:
        """Takes a pair of so many tokens; returns the number of its row."""
        candidates = self._at_least[target, source:]
        best = int(candidates.argmin())
        row = int(candidates[best])
        if row == self.NONE:
            row, rooms = self.count, (self._length, self._length)
            self.count += 1
            self._target_room.append(0)
        else:
            rooms = source + best, self._target_room[row]
            heap = self._rows[rooms]
            heapq.heappop(heap)  # the oldest of its kind
            self._update(rooms, heap)
        left = rooms[0] - source, rooms[1] - target
        self._target_room[row] = left[1]
        if min(left) >= FEWEST:
            heap = self._rows.setdefault(left, [])
            heapq.heappush(heap, row)
            self._update(left, heap)
        return row

    def _update(self, rooms: tuple[int, int], heap: list[int]) -> None:
        source, target = rooms
        oldest = heap[0] if heap else self.NONE
        if self._exact[source, target] != oldest:
            self._exact[source, target] = oldest
            exact = self._exact[source]
            self._at_least[:, source] = np.minimum.accumulate(exact[::-1])[::-1]
