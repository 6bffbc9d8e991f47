"""Bytes of a text file -> text. A byte order mark decides, then the encoding of the source."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)


def marked_encoding(content: bytes) -> str | None:
    """The encoding whose byte order mark begins `content`; None without a mark."""
    return next((name for mark, name in _MARKS if content.startswith(mark)), None)


def decoded(content: bytes, encoding: str) -> str:
    """The text without its mark. Raises `UnicodeDecodeError`; `encoding` is for one without."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name)
    return content.decode(encoding)


def is_text_encoding(name: str) -> bool:
    """Whether Python knows an encoding of texts by this name."""
    try:
        "".encode(codecs.lookup(name).name)
    except (LookupError, ValueError, TypeError):
        return False
    return True
