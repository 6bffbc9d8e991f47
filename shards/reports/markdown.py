"""Text of users in Markdown: class names and names of data sets are shown as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*\[\]|#!~$])")
# Inside a word an underscore is only itself.
_EMPHASIS = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
# Also the marks that turn the direction of all that follows.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def plain(text: object) -> str:
    """`text` for a heading, a paragraph or a cell: no markup, no HTML, on one line."""
    shown = _SPECIAL.sub(r"\\\1", _CONTROL.sub(" ", str(text)))
    return _EMPHASIS.sub(r"\\_", shown).translate(_HTML)


def code(text: object) -> str:
    """`text` as code, outside tables; backticks in it do not end it."""
    shown = _CONTROL.sub(" ", str(text))
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""
    return f"{fence}{padding}{shown}{padding}{fence}"


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain cells, with a line end after each row."""
    lines = [[plain(cell) for cell in row] for row in [header, *rows]]
    lines.insert(1, ["---"] * len(header))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
