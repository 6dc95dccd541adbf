"""Pieces of a sweep's page: HTML of tables, legends and sections, and values as text."""

import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from vitjax.sweep import figures
from vitjax.sweep.settings import label

LOG_LINES, LOG_BYTES = 25, 64_000  # of a failed trial's log that are shown, and that are read for them


def log_end(path: pathlib.Path) -> str:
    """The last lines of a log without a terminal's colours; of a line drawn over, what stood last."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - LOG_BYTES))
            text = f.read().decode("utf-8", "replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    text = "\n".join(lines[-LOG_LINES:])
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def section(title: str, content: str) -> str:
    """A section with its heading; nothing if it is empty."""
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def legend(names: Sequence[str]) -> str:
    """Names of series beside their marks."""
    items = []
    for index, name in enumerate(names):
        if name:
            color = index % len(figures.COLORS)
            shape = f"m{index // len(figures.COLORS) % len(figures.MARKERS)}"
            items.append(f'<li><i class="{shape}" style="background:var(--c{color})"></i>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """A table of text, columns from `numbers_from` on to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if i >= numbers_from else ''}>{escape(text)}</{tag}>"
            for i, text in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def once(names: Sequence[str]) -> list[str]:
    """Names, each only where it first appears."""
    return [name if name not in names[:i] else "" for i, name in enumerate(names)]


def several(texts: Iterable[str | None]) -> str:
    """Distinct texts, the most frequent first, at most three."""
    found = [text for text, _ in Counter(filter(None, texts)).most_common()]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def numeric(values: Sequence[Any]) -> bool:
    """Whether all values that are known are numbers."""
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def cell(value: Any) -> str:
    """A value as text: five digits of a float, a time to the minute."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else f"{value:%Y-%m-%d %H:%M}" if hasattr(value, "strftime") else label(value)


def td(value: Any, numeric: bool) -> str:
    """A cell; `data-v` is what a number is sorted by."""
    if numeric:
        return f'<td class=number data-v="{"" if value is None else repr(float(value))}">{cell(value)}</td>'
    return f"<td>{escape(cell(value))}</td>"


def si(value: float) -> str:
    """A large number with its unit, such as `4.6 G`; `-` for NaN."""
    if math.isnan(value):
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
