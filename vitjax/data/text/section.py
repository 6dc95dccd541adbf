"""Section `text` of a config: languages, vocabulary and the rows that training reads."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitjax import files
from vitjax.data.text.pairs import Pairs, open_pairs
from vitjax.data.text.source import PackedPairs
from vitjax.data.text.vocabulary import KINDS, Vocabulary
from vitjax.errors import UserError, nearest

VOCABULARY_FILE = "vocabulary.model"
_SILENT: Callable[[str], None] = lambda line: None


@dataclasses.dataclass(frozen=True)
class Text:
    """Section `text`. With it, `input.data` names sentence pairs.

    Attributes:
      languages: of source and target.
      vocab_size: pieces of the vocabulary that both share, the four special ones among them.
      kind: of the vocabulary: `bpe` or `unigram`.
      length: tokens of a row, on either side; a longer sentence is left out of training.
      lower: lower-case all text, here and when it is translated.
      pack: several pairs to a row; False: one.
      byte_fallback: spell characters that are not in the training text by their bytes.
      vocab_pairs: at most so many pairs, evenly spread over the training split, teach the vocabulary.
      vocabulary: a SentencePiece model to use; left out, one is learnt from the training split.
    """

    languages: Sequence[str] = ("en", "de")
    vocab_size: int = 8000
    kind: str = "bpe"
    length: int = 64
    lower: bool = False
    pack: bool = True
    byte_fallback: bool = False
    vocab_pairs: int = 1_000_000
    vocabulary: str | None = None

    def __post_init__(self):
        """Refuses values out of range."""
        if self.kind not in KINDS:
            raise UserError(
                f"config.text.kind = {self.kind!r} must be one of {', '.join(KINDS)}."
                f"{nearest(self.kind, KINDS)}"
            )
        if self.length < 2:
            raise UserError(f"config.text.length = {self.length}: 2 tokens or more.")
        if self.vocab_pairs < 1:
            raise UserError(f"config.text.vocab_pairs = {self.vocab_pairs}: 1 pair or more.")

    def clean(self, line: str) -> str:
        """A sentence as the vocabulary gets it, in training and in translation."""
        return line.strip().lower() if self.lower else line.strip()

    def open_pairs(self, data: str, split: str) -> Pairs:
        """The sentence pairs of a data set, in the languages of the run."""
        return open_pairs(data, split, self.languages)

    def open_rows(
        self,
        pairs: Pairs,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
        tell: Callable[[str], None] = _SILENT,
    ) -> PackedPairs:
        """The rows that these pairs make."""
        return PackedPairs(
            pairs, vocabulary, self.length, seed=seed, packed=self.pack, clean=self.clean, tell=tell
        )

    def open_vocabulary(
        self,
        pairs: Pairs,
        workdir: pathlib.Path | None = None,
        *,
        store: bool = True,
        tell: Callable[[str], None] = _SILENT,
    ) -> Vocabulary:
        """The vocabulary of the run: that of its workdir; else the one named, or one learnt from the pairs.

        Args:
          pairs: the training split.
          workdir: of the run, which keeps it as `vocabulary.model`; None keeps none.
          store: False, for all but one of several processes, writes nothing.
          tell: takes a line on what is being done.

        Raises:
          UserError: a file that is no vocabulary, or another than the config asks for.
        """
        kept = workdir / VOCABULARY_FILE if workdir else None
        if kept and kept.is_file():
            return self._checked(Vocabulary.read(kept), kept)
        if self.vocabulary:
            found = Vocabulary.read(pathlib.Path(self.vocabulary).expanduser())
        else:
            tell(f"text: learning a vocabulary of {self.vocab_size:,} pieces from {pairs.name}")
            found = Vocabulary.train(
                self._lines(pairs), self.vocab_size, self.kind, byte_fallback=self.byte_fallback
            )
        if kept and store:
            files.folder(kept.parent)
            found.write(kept)
        return found

    def _checked(self, found: Vocabulary, kept: pathlib.Path) -> Vocabulary:
        """What the workdir keeps, if it is what the config asks for."""
        remedy = "Set it back, or give another --workdir."
        if self.vocabulary:
            named = Vocabulary.read(pathlib.Path(self.vocabulary).expanduser())
            if named.checksum != found.checksum:
                raise UserError(
                    f"config.text.vocabulary = {self.vocabulary!r} is another than {str(kept)!r}, which the "
                    f"run began with. {remedy}"
                )
        elif len(found) != self.vocab_size:
            raise UserError(
                f"{str(kept)!r}, which the run began with, has {len(found):,} pieces, but "
                f"config.text.vocab_size = {self.vocab_size:,}. {remedy}"
            )
        return found

    def _lines(self, pairs: Pairs) -> Iterator[str]:
        """Sentences of both languages that teach the vocabulary."""
        count = min(len(pairs), self.vocab_pairs)
        for index in (np.arange(count) * len(pairs) // count if count else np.zeros(0, int)).tolist():
            for line in pairs[index]:
                if line := self.clean(line):
                    yield line


def open_vocabulary_of(workdir: pathlib.Path) -> Vocabulary:
    """The vocabulary that a run keeps in its workdir; raises UserError where there is none."""
    path = workdir / VOCABULARY_FILE
    if not path.is_file():
        raise UserError(f"{str(workdir)!r} has no {VOCABULARY_FILE}: name the workdir of a run on text.")
    return Vocabulary.read(path)
