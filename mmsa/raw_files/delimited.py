"""Tables of text whose fields are separated by a character: which character, and which encoding.

Programs write CSV with another separator where the comma is the decimal sign, so the name of a file
does not say it. Excel's own marker, a first line `sep=;`, decides. Otherwise the header does.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass

_SEP_LINE = re.compile(r'"?sep=([^\w"\s]|\t)"?', re.IGNORECASE)
_FEWEST_COLUMNS = 3  # a text, an image and a label
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True)
class Separator:
    """The character between the fields. With `marked`, a first line `sep=` precedes the header."""

    character: str
    marked: bool = False

    def __str__(self) -> str:
        """As in "separated by semicolons"."""
        return _SEPARATORS.get(self.character, f"{self.character!r}")


def marked_encoding(start: bytes) -> str | None:
    """The encoding that the first bytes of a file prove, by a byte order mark or by zeros.

    Zeros in every other byte are UTF-16 without its mark: no other encoding of a table has them.
    """
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    if len(start) >= 4 and start[0] and start[2] and not (start[1] or start[3]):
        return "utf-16-le"
    if len(start) >= 4 and start[1] and start[3] and not (start[0] or start[2]):
        return "utf-16-be"
    return None


def separator_of(first_line: str, *, fewest_columns: int = _FEWEST_COLUMNS) -> Separator:
    """The separator of the CSV that begins with `first_line`.

    The comma, where it gives a header of at least `fewest_columns`; else the one of comma,
    semicolon, tab and vertical bar that gives the most columns, the comma where none does.
    """
    line = first_line.rstrip("\r\n")
    sep = _SEP_LINE.fullmatch(line)
    if sep:
        return Separator(sep[1], marked=True)
    columns = {character: _columns(line, character) for character in _SEPARATORS}
    if columns[","] >= fewest_columns:
        return Separator(",")
    return Separator(max(columns, key=lambda character: columns[character]))


def _columns(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator), []))
    except csv.Error:
        return 1
