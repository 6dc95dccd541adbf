"""The subword vocabulary that source and target share: a SentencePiece model, learnt from the training text.

The model is a string of bytes (`Vocabulary.serialised`), which a run keeps beside its checkpoints. Which
numbers padding, end, beginning and unknown have is read from it.
"""

import functools
import hashlib
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitjax import files
from vitjax.errors import UserError, nearest

KINDS = ("bpe", "unigram")
# SentencePiece adds up per thread: the number is fixed, so that the number of cores changes nothing.
THREADS = 4


class Vocabulary:
    """Text to numbers and back.

    Attributes:
      serialised: the SentencePiece model.
      pad: number of the padding piece.
      eos: number of the piece that ends a sentence.
      bos: number of the piece that begins the decoder's input.
      unk: number of the piece that stands for what the vocabulary cannot spell.
    """

    def __init__(self, serialised: bytes, name: str = "the vocabulary"):
        """Reads a SentencePiece model; `name` is what error messages call it.

        Raises:
          UserError: it is no such model, or it lacks one of the four special pieces.
        """
        self.serialised = serialised
        self._processor = _processor(serialised, name)
        ids = {each: getattr(self._processor, f"{each}_id")() for each in ("pad", "eos", "bos", "unk")}
        if lacking := [each for each, number in ids.items() if number < 0]:
            raise UserError(
                f"{name} has no piece for {', '.join(lacking)}. Train SentencePiece with --pad_id, --eos_id, "
                "--bos_id and --unk_id all 0 or more, or leave the vocabulary to vitjax."
            )
        self.pad, self.eos, self.bos, self.unk = ids["pad"], ids["eos"], ids["bos"], ids["unk"]

    @classmethod
    def from_bytes(cls, serialised: bytes, name: str = "the vocabulary") -> "Vocabulary":
        """The vocabulary whose `serialised` was kept; raises UserError as the constructor does."""
        return cls(serialised, name)

    @classmethod
    def train(
        cls, lines: Iterable[str], size: int, kind: str = "bpe", *, byte_fallback: bool = False
    ) -> "Vocabulary":
        """Learns a vocabulary; the same lines give the same one, byte for byte.

        Text is taken as it is: no case folding, no Unicode normalisation, every space kept, so that `decode`
        gives back what `encode` was given, if its characters were among those of the lines.

        Args:
          lines: sentences of both languages.
          size: number of pieces, the four special ones among them.
          kind: `bpe` (Sennrich et al. 2016; the paper's) or `unigram` (Kudo 2018; flax's example).
          byte_fallback: spend 256 pieces on bytes, so that a character that is not in `lines` is spelt by its
            bytes and not lost as unknown.

        Raises:
          UserError: no lines, an unknown kind, or a size that these lines do not give.
        """
        if kind not in KINDS:
            raise UserError(f"kind={kind!r} must be one of {', '.join(KINDS)}.{nearest(str(kind), KINDS)}")
        if size < 8:
            raise UserError(f"vocab_size={size}: as many pieces as the text has characters, and 4, at least.")
        written = io.BytesIO()
        try:
            _sentencepiece().SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type=kind,
                vocab_size=size,
                pad_id=0,
                eos_id=1,
                bos_id=2,
                unk_id=3,
                character_coverage=1.0,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                byte_fallback=byte_fallback,
                num_threads=THREADS,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(_why_not_trained(error, size)) from error
        return cls(written.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads the vocabulary that `write` left; raises UserError for a file that is missing or none."""
        path = pathlib.Path(path)
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(
                f"Cannot read the vocabulary {str(path)!r}: {error.strerror or error}."
            ) from error

    def write(self, path: str | os.PathLike) -> None:
        """Writes the model to `path`, whole or not at all."""
        files.replace(path, self.serialised)

    def encode(self, lines: Sequence[str]) -> list[np.ndarray]:
        """The pieces of each line, int32 `[N]`, without an end."""
        pieces = self._processor.encode(list(lines), out_type=int, num_threads=os.cpu_count() or 1)
        return [np.array(each, np.int32) for each in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of pieces `[N]`: up to the first end, without padding and beginning.

        Raises:
          UserError: a number that is no piece.
        """
        ids = np.asarray(list(ids), np.int64)
        ends = np.flatnonzero(ids == self.eos)
        ids = ids[: ends[0]] if len(ends) else ids
        ids = ids[(ids != self.pad) & (ids != self.bos)]
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise UserError(f"piece {ids.max()} is none of the {len(self)} of the vocabulary.")
        return self._processor.decode(ids.tolist())

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def piece(self, number: int) -> str:
        """How a piece is written; U+2581 stands for a space."""
        return self._processor.id_to_piece(int(number))

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of the model, in hex."""
        return hashlib.sha256(self.serialised).hexdigest()

    def __reduce__(self):
        return Vocabulary, (self.serialised,)


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise UserError("Text needs SentencePiece: pip install 'vitjax[translate]'.") from error
    return sentencepiece


def _processor(serialised: bytes, name: str) -> Any:
    library = _sentencepiece()
    if not serialised:  # SentencePiece would wait for a model to be loaded later
        raise UserError(f"{name} is empty: it should be a SentencePiece model.")
    try:
        return library.SentencePieceProcessor(model_proto=serialised)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{name} is no SentencePiece model, or a damaged one.") from error


def _why_not_trained(error: Exception, size: int) -> str:
    """What SentencePiece complains of, without the place in its source."""
    said = str(error)
    if "too high" in said or "required_chars" in said or "vocab_size" in said:
        reason = said.rpartition("] ")[2].strip() or said
        return f"vocab_size={size} does not go with the training text. SentencePiece says: {reason}"
    if "sentences_.empty()" in said or "sentences" in said:
        return "There is no text to learn a vocabulary from: the training split holds no sentences."
    return f"SentencePiece cannot learn a vocabulary of {size} pieces: {said}"
