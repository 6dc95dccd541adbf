"""Packed rows of sentence pairs as a source: what training on text reads where images have pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitjax.data.sources.base import Source
from vitjax.data.text import packing
from vitjax.data.text.pairs import Pairs, sides
from vitjax.data.text.vocabulary import Vocabulary
from vitjax.errors import UserError

TELL_EVERY = 1_000_000  # pairs


class Tokens(NamedTuple):
    """Sentences as numbers, each with its end, one after another.

    Attributes:
      flat: uint16, or uint32 where the vocabulary is larger, `[total]`.
      ends: where each sentence ends in `flat`, int64 `[N]`.
    """

    flat: np.ndarray
    ends: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, int64 `[N]`."""
        return np.diff(self.ends, prepend=0)

    def take(self, wanted: np.ndarray) -> "Tokens":
        """The sentences of these numbers, in their order."""
        lengths = self.lengths[wanted]
        ends = np.cumsum(lengths)
        # Token j of the result is as far behind the start of its sentence as it is in `flat`.
        shift = np.repeat((self.ends - self.lengths)[wanted] - (ends - lengths), lengths)
        return Tokens(self.flat[np.arange(len(shift)) + shift], ends)


class Counts(NamedTuple):
    """What became of the pairs of a corpus.

    Attributes:
      pairs: how many there were.
      empty: of which one side or both had no text.
      long: of which one side or both did not fit a row.
    """

    pairs: int
    empty: int
    long: int


class PackedPairs(Source):
    """Rows of sentence pairs; `source[i]` is row i, `packing.KEYS`, int32 `[length]` each.

    Pairs with an empty side, and those too long for a row, are left out and counted. Rows are packed once,
    when the source is made, so the pairs of a row stay together in all epochs; the seed says which they are.

    Attributes:
      name: of the pairs.
      length: tokens of a row, on either side.
      counts: what became of the pairs.
      notes: the same in sentences, with the share of padding.
      about: the same for `run.json`.
      unit: `tokens`, those of the targets, ends counted, are what speed is measured by.
      units_per_example: how many of them a row has on average.
    """

    class_names = ()
    unit = "tokens"

    def __init__(
        self,
        pairs: Pairs,
        vocabulary: Vocabulary,
        length: int,
        *,
        seed: int = 0,
        packed: bool = True,
        clean: Callable[[str], str] = str,
        tell: Callable[[str], None] = lambda line: None,
    ):
        """Encodes and packs.

        Args:
          pairs: the sentences.
          vocabulary: of both languages.
          length: tokens of a row, on either side; a sentence with its end has to fit.
          seed: of the order in which pairs are packed.
          packed: several pairs to a row; False: each alone, in their order.
          clean: applied to each sentence first, such as `str.lower`.
          tell: takes lines on how far it is.

        Raises:
          UserError: no pair is left.
        """
        if length < packing.FEWEST:
            raise UserError(f"config.text.length = {length}: {packing.FEWEST} tokens or more.")
        self.name, self.length = pairs.name, length
        self._vocabulary = vocabulary
        sources, targets = encode(pairs, vocabulary, clean, tell)
        shortest = np.minimum(sources.lengths, targets.lengths)
        longest = np.maximum(sources.lengths, targets.lengths)
        empty = shortest < packing.FEWEST
        too_long = (longest > length) & ~empty
        kept = np.flatnonzero(~empty & ~too_long)
        self.counts = Counts(len(pairs), int(empty.sum()), int(too_long.sum()))
        if not len(kept):
            raise UserError(
                f"{pairs.name}: no sentence pair is left of {len(pairs):,}: {self.counts.empty:,} have an "
                f"empty side, {self.counts.long:,} are longer than config.text.length = {length}."
            )
        lengths = sources.lengths[kept], targets.lengths[kept]
        rows = packing.pack(*lengths, length, seed) if packed else packing.alone(len(kept))
        self._pairs = kept[rows.pairs]
        self._row_ends = rows.ends
        self._sources, self._targets = sources.take(self._pairs), targets.take(self._pairs)

    @property
    def num_classes(self) -> int:
        """Number of pieces of the vocabulary."""
        return len(self._vocabulary)

    def __len__(self) -> int:
        return len(self._row_ends)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pairs = self._row(index)
        return packing.row(
            *_span(self._sources, pairs), *_span(self._targets, pairs), self.length, self._vocabulary
        )

    def _row(self, index: int) -> slice:
        """Which of the pairs, in the order of the rows, a row has."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not in [0, {len(self)}) of {self.name}")
        return slice(int(self._row_ends[index - 1]) if index else 0, int(self._row_ends[index]))

    def pairs_of(self, index: int) -> np.ndarray:
        """The pairs of a row, first segment first, as indices into those the source was made of, `[K]`."""
        return self._pairs[self._row(index)]

    def describe(self, index: int) -> str:
        """Which pairs a row has."""
        numbers = ", ".join(map(str, self.pairs_of(index).tolist()))
        return f"row {index} of {self.name} (pairs {numbers})"

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of all rows, (source, target), ends counted."""
        return len(self._sources.flat), len(self._targets.flat)

    @property
    def padding(self) -> float:
        """Share of all places, source and target, that hold no token."""
        return 1 - sum(self.tokens) / (2 * len(self) * self.length)

    @property
    def units_per_example(self) -> float:
        """Target tokens of a row, on average."""
        return self.tokens[1] / len(self)

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of the text when a run begins."""
        counts, (source, target) = self.counts, self.tokens
        lines = [
            f"text: {len(self._pairs):,} pairs of {self.name} in {len(self):,} rows of {self.length} and "
            f"{self.length}: {source:,} source and {target:,} target tokens, {self.padding:.1%} padding"
        ]
        if counts.empty:
            lines.append(f"text: {_share(counts.empty, counts.pairs)} left out: a side has no text")
        if counts.long:
            lines.append(
                f"text: {_share(counts.long, counts.pairs)} left out: more than config.text.length = "
                f"{self.length} tokens, the end counted"
            )
        return lines

    @property
    def about(self) -> Mapping[str, Any]:
        """What `run.json` keeps: counts of pairs, rows and tokens, and the share of padding."""
        source, target = self.tokens
        return {
            "text": dict(
                self.counts._asdict(),
                rows=len(self),
                source_tokens=source,
                target_tokens=target,
                padding=round(self.padding, 6),
                vocabulary=self._vocabulary.checksum,
            )
        }


def _span(tokens: Tokens, sentences: slice) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of neighbouring sentences."""
    start = int(tokens.ends[sentences.start - 1]) if sentences.start else 0
    ends = tokens.ends[sentences]
    return tokens.flat[start : ends[-1]], np.diff(ends, prepend=start)


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} pairs ({count / of:.2%})"


def encode(
    pairs: Pairs,
    vocabulary: Vocabulary,
    clean: Callable[[str], str] = str,
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Tokens, Tokens]:
    """The tokens of sources and targets, each with its end; an empty sentence is an end alone."""
    kind = np.uint16 if len(vocabulary) <= 2**16 else np.uint32
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    lengths: tuple[list[int], list[int]] = ([], [])
    done, told = 0, TELL_EVERY
    end = np.array([vocabulary.eos], kind)
    for chunk in sides(pairs):
        for side, lines in enumerate(chunk):
            pieces = vocabulary.encode([clean(line) for line in lines])
            parts[side].append(np.concatenate([part for each in pieces for part in (each.astype(kind), end)]))
            lengths[side].extend(len(each) + 1 for each in pieces)
        done += len(chunk[0])
        if done >= told:
            tell(f"text: {done:,} of {len(pairs):,} pairs encoded")
            told += TELL_EVERY
    joined = [
        Tokens(np.concatenate(part) if part else np.zeros(0, kind), np.cumsum(length, dtype=np.int64))
        for part, length in zip(parts, lengths, strict=True)
    ]
    return joined[0], joined[1]
