"""Names with numbers in them: `blocks.{i}.norm1`, `block{i+1}/unit{j+1}`.

A mark `{i}` stands for a number on one side of a table and for the same number on the other side; `{i+1}`
for the next, where one side counts from zero and the other from one; `{2i}` and `{2i+1}` where one side
counts two things in turn.
"""

import functools
import re
from collections.abc import Iterable, Mapping

_MARK = re.compile(r"\{(2?)([a-z])(\+1)?\}")
_NUMBER = re.compile(r"\{2?[a-z](?:\+1)?\}|\d+")


def match(template: str, name: str) -> dict[str, int] | None:
    """The numbers with which the template gives the name: `{"i": 3}`; None if it does not."""
    found = _pattern(template).fullmatch(name)
    if not found:
        return None
    numbers = {}
    for two, letter, plus in _MARK.findall(template):
        numbers[letter], rest = divmod(int(found[letter]) - bool(plus), 2 if two else 1)
        if numbers[letter] < 0 or rest:
            return None
    return numbers


def fill(template: str, numbers: Mapping[str, int]) -> str:
    """The name that the template gives with these numbers."""
    number = lambda two, letter, plus: (2 if two else 1) * numbers[letter] + bool(plus)
    return _MARK.sub(lambda mark: str(number(*mark.groups())), template)


class Templates:
    """Finds which of many templates gives a name."""

    def __init__(self, templates: Iterable[str]):
        self._by_skeleton: dict[str, list[str]] = {}
        for template in templates:
            self._by_skeleton.setdefault(_skeleton(template), []).append(template)

    def find(self, name: str) -> tuple[str, dict[str, int]] | None:
        """The template and the numbers; None if no template gives the name."""
        for template in self._by_skeleton.get(_skeleton(name), ()):
            numbers = match(template, name)
            if numbers is not None:
                return template, numbers
        return None


def marked(name: str) -> str:
    """The name with marks for its numbers between dots: as a template for it would likely read."""
    letters = iter("ijk")
    return re.sub(r"(?<=\.)\d+(?=\.)", lambda number: f"{{{next(letters, number[0])}}}", name)


def _skeleton(text: str) -> str:
    return _NUMBER.sub("#", text)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts, end = [], 0
    for mark in _MARK.finditer(template):
        parts += [re.escape(template[end : mark.start()]), rf"(?P<{mark[2]}>\d+)"]
        end = mark.end()
    return re.compile("".join(parts) + re.escape(template[end:]))
