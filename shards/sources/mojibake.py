"""Repair of what spreadsheets did to the tweets of MVSA: mojibake, and line ends written out.

The tweets are GB18030. Opened by a program that takes bytes for Windows-1252, an ellipsis (A1 AD)
became the two characters U+00A1 U+00AD, and so on. The damage is undone by going the way back.

Whether it happened is a property of the file, not of a cell: a word with one accented letter
followed by a plain one could be GB18030 too. So a file counts as damaged where at least half of its
cells beyond ASCII go back and have only characters beyond ASCII in pairs, which western words
hardly ever have; then every cell that goes back is repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
# Windows-1252 leaves five bytes without a character; programs keep them as control characters.
_TO_BYTE = {chr(byte): byte for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_TO_BYTE |= {
    bytes([byte]).decode("cp1252"): byte for byte in range(256) if chr(byte) not in _TO_BYTE
}


def undo_mojibake(text: str) -> str | None:
    """`text` as it was before GB18030 was read as Windows-1252; None where it does not go back."""
    try:
        return bytes(_TO_BYTE[character] for character in text).decode("gb18030")
    except (KeyError, UnicodeDecodeError):
        return None


def is_mojibake(texts: Iterable[str]) -> bool:
    """Whether a file with these texts is damaged, by the rule at the head of this file."""
    beyond = clear = 0
    for text in texts:
        runs = _BEYOND_ASCII.findall(text)
        if runs:
            beyond += 1
            paired = all(len(run) % 2 == 0 for run in runs)
            clear += paired and undo_mojibake(text) is not None
    return beyond > 0 and 2 * clear >= beyond


def repair_line_ends(text: str) -> str:
    """LF for each CRLF, CR and XLSX's written-out `_x000D_`, with or without its line feed."""
    return re.sub(r"(?:_x000D_|\r)+\n?", "\n", text, flags=re.IGNORECASE)
