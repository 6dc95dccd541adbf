"""Lines of text to lines of text, in batches of a few fixed shapes."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vitjax.decoding import Found

SMALLEST_BUCKET = 16  # tokens
FEW_ROWS = (1, 8)  # a batch that is not full has so many rows, if they are enough


@dataclasses.dataclass(frozen=True)
class Translation:
    """What became of one line.

    Attributes:
      texts: hypotheses, the best first; one empty one of an empty line.
      scores: what they are ordered by: of log-probabilities, see `conventions`.
      tokens: of the line, with its end, before it was cut.
      cut: whether it was longer than the limit, so that its end was left untranslated.
      ended: whether the best hypothesis came to its end within the limit.
    """

    texts: tuple[str, ...] = ("",)
    scores: tuple[float, ...] = (0.0,)
    tokens: int = 0
    cut: bool = False
    ended: bool = True


class Translator:
    """Translates lists of lines.

    Lines are sorted by length into buckets of 16, 32, 64, ... tokens, each with a batch of its own size, so
    that there is a program for each bucket and at most two more for a rest of few lines.

    Args:
      decode: finds the best targets of sources, int32 `[B, S]` with ends and padding; see `decoder.Decoder`.
      vocabulary: text to tokens and back, as `data.text.vocabulary.Vocabulary`.
      longest: most tokens of a source, its end counted; the end of a longer one is cut off.
      clean: what is done to a line before it is encoded.
      batch_tokens: tokens of the sources of a batch, with padding.
      share: every batch has a multiple of so many rows.
    """

    def __init__(
        self,
        decode: Callable[[np.ndarray], Found],
        vocabulary: Any,
        *,
        longest: int,
        clean: Callable[[str], str] = str.strip,
        batch_tokens: int = 4096,
        share: int = 1,
    ):
        self._decode, self._vocabulary, self._clean = decode, vocabulary, clean
        self._longest, self._batch_tokens, self._share = longest, batch_tokens, share

    def __call__(
        self, lines: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> list[Translation]:
        """The translations of these lines, in their order. An empty line stays one.

        `progress` is called after each batch with the number of lines done and the number there are.
        """
        cleaned = [self._clean(line) for line in lines]
        pieces = self._vocabulary.encode(cleaned)
        full = {i: pieces[i] for i, line in enumerate(cleaned) if line}
        done, count = [Translation()] * len(lines), 0
        for rows, inputs in self._batches(full):
            found = jax.device_get(self._decode(inputs))
            for row, index in enumerate(rows):
                done[index] = self._told(len(pieces[index]) + 1, found.seqs[row], found.scores[row])
            count += len(rows)
            if progress:
                progress(count, len(full))
        return done

    def _batches(self, pieces: dict[int, np.ndarray]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Indices of lines, and their tokens `[B, S]` with ends and padding; empty rows may follow."""
        size = lambda index: min(len(pieces[index]) + 1, self._longest)
        buckets: dict[int, list[int]] = {}
        for index in sorted(pieces, key=size):
            buckets.setdefault(self._bucket(size(index)), []).append(index)
        # The longest first: a device that cannot hold them says so at once.
        for length, indices in sorted(buckets.items(), reverse=True):
            most = self._whole_shares(max(1, self._batch_tokens // length))
            few = [height for height in map(self._whole_shares, FEW_ROWS) if height < most]
            for start in range(0, len(indices), most):
                rows = indices[start : start + most]
                height = next((height for height in few if len(rows) <= height), most)
                yield rows, self._padded([pieces[index] for index in rows], height, length)

    def _whole_shares(self, rows: int) -> int:
        return -(-rows // self._share) * self._share

    def _bucket(self, size: int) -> int:
        bucket = SMALLEST_BUCKET
        while bucket < size:
            bucket *= 2
        return min(bucket, self._longest)

    def _padded(self, rows: list[np.ndarray], height: int, length: int) -> np.ndarray:
        inputs = np.full((height, length), self._vocabulary.pad, np.int32)
        for row, pieces in zip(inputs, rows, strict=False):
            kept = pieces[: length - 1]
            row[: len(kept) + 1] = [*kept, self._vocabulary.eos]
        return inputs

    def _told(self, tokens: int, seqs: np.ndarray, scores: np.ndarray) -> Translation:
        found = [(seq, float(score)) for seq, score in zip(seqs, scores, strict=True) if np.isfinite(score)]
        return Translation(
            texts=tuple(one_line(self._vocabulary.decode(seq)) for seq, _ in found),
            scores=tuple(score for _, score in found),
            tokens=tokens,
            cut=tokens > self._longest,
            ended=bool((found[0][0] == self._vocabulary.eos).any()),
        )


def one_line(text: str) -> str:
    """The text without line breaks and tabs, which a vocabulary with bytes could spell."""
    return text.translate({ord(each): " " for each in "\n\r\t"})
