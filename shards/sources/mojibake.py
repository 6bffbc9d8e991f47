"""Repair of the damage that spreadsheets did to MVSA's tweets: mojibake, and escaped line ends.

The tweets are GB18030. A program that read them as Windows-1252 turned an ellipsis (A1 AD) into the
two characters U+00A1 U+00AD, and so on. The repair encodes as Windows-1252 and decodes as GB18030.

Damage is a property of the file, not of a cell: a word with one accented letter followed by a plain
one could be GB18030 too. So a file counts as damaged where at least half of its non-ASCII cells can
be repaired and have all their non-ASCII characters in pairs, which western words hardly ever do.
Then every cell that can be repaired is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
# Windows-1252 leaves five bytes undefined; programs keep them as control characters.
_TO_BYTE = {chr(byte): byte for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_TO_BYTE |= {
    bytes([byte]).decode("cp1252"): byte for byte in range(256) if chr(byte) not in _TO_BYTE
}


def undo_mojibake(text: str) -> str | None:
    """`text` as it was before GB18030 was read as Windows-1252; None where it cannot be."""
    try:
        return bytes(_TO_BYTE[character] for character in text).decode("gb18030")
    except (KeyError, UnicodeDecodeError):
        return None


def is_mojibake(texts: Iterable[str]) -> bool:
    """Whether a file with these texts is damaged, by the rule at the top of this module."""
    beyond = clear = 0
    for text in texts:
        runs = _BEYOND_ASCII.findall(text)
        if runs:
            beyond += 1
            paired = all(len(run) % 2 == 0 for run in runs)
            clear += paired and undo_mojibake(text) is not None
    return beyond > 0 and 2 * clear >= beyond


def repair_line_ends(text: str) -> str:
    """LF for each CRLF, CR and XLSX's escape `_x000D_`, with or without its line feed."""
    return re.sub(r"(?:_x000D_|\r)+\n?", "\n", text, flags=re.IGNORECASE)
