"""Split strings: `train`, `train[:80%]`, `train[80%:]`, `train[100:-5]`, `train+test[:50]`.

The language and the rounding are those of TensorFlow Datasets
(https://www.tensorflow.org/datasets/splits), for every kind of source: a percentage becomes
`round(percent * n / 100)`, so `train[:80%]` and `train[80%:]` never share or lose an example.
"""

import dataclasses
import re
from collections.abc import Iterable

from vitjax.errors import UserError, nearest

_PIECE = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>[^:\[\]]*):(?P<stop>[^:\[\]]*)\])?")
_BOUND = re.compile(r"(?P<value>-?\d+)|(?P<percent>-?\d+(\.\d+)?)%")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One term of a split string: a named split and the part of it that is wanted."""

    text: str
    name: str
    start: str = ""
    stop: str = ""

    def bounds(self, num_examples: int) -> tuple[int, int]:
        """Returns `(start, stop)` as indices into a split of `num_examples`; raises UserError when empty."""
        start = _position(self.start, num_examples, 0, self.text)
        stop = _position(self.stop, num_examples, num_examples, self.text)
        if start >= stop:
            raise UserError(
                f"split {self.text!r} holds no examples: {self.name!r} has {num_examples} and the slice is "
                f"[{start}:{stop}]. Choose a wider slice."
            )
        return start, stop


def _position(bound: str, num_examples: int, default: int, text: str) -> int:
    """One side of a slice as an index from the start, rounded as TFDS rounds."""
    match = _BOUND.fullmatch(bound)
    if match is None:  # parse() let it through, so it is empty
        return default
    percent = match["percent"]
    index = round(float(percent) * num_examples / 100.0) if percent else int(match["value"])
    if abs(index) > num_examples:
        raise UserError(f"split {text!r} asks for example {bound} of a split that has {num_examples}.")
    return num_examples + index if index < 0 else index


def parse(split: str, valid: Iterable[str]) -> list[Piece]:
    """Splits a split string into its pieces and checks each name against `valid`.

    Args:
      split: for example `train[:90%]+test`.
      valid: names of the splits that the source has.

    Raises:
      UserError: for a string that is not a split, or a name that is not among `valid`.
    """
    valid = list(valid)
    return [_parse_piece(text.strip(), split, valid) for text in split.split("+")]


def _parse_piece(text: str, split: str, valid: list[str]) -> Piece:
    match = _PIECE.fullmatch(text)
    sides = [side.strip() for side in (match["start"] or "", match["stop"] or "")] if match else []
    if match is None or any(side and not _BOUND.fullmatch(side) for side in sides):
        raise UserError(
            f"split {split!r} cannot be read at {text!r}. Write a name or a slice of one, such as 'train', "
            "'train[:90%]', 'train[100:-5]', 'train+test[:50]'."
        )
    if len({side.endswith("%") for side in sides if side}) > 1:
        raise UserError(f"split {split!r}: both ends of {text!r} must be percentages or both be counts.")
    if match["name"] not in valid:
        raise UserError(
            f"split {split!r} names {match['name']!r}, which does not exist.{nearest(match['name'], valid)} "
            f"Splits here: {', '.join(valid)}."
        )
    return Piece(text, match["name"], *sides)
