"""Whether a JPEG ends before its last row, although an end mark follows.

libjpeg fills the missing rows with grey and only warns. simplejpeg turns the first warning into an
error; Pillow says nothing of them.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator

from PIL import Image

Content = bytes | memoryview

# libjpeg's warnings where data are missing. The third one: the end mark in place of a restart mark.
_MISSING = re.compile(r"premature end|found marker 0xd9", re.IGNORECASE)
# A mark that ends a scan, with fill before it; no stuffed byte and no restart mark.
_MARK = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
_END, _SCAN = 0xD9, 0xDA
_MORE = bytes((37 * number + 11) % 251 for number in range(512))  # made-up data of a scan, no 0xFF


def is_cut(content: Content, said: str) -> bool:
    """Whether data are missing in a JPEG of which simplejpeg `said` something.

    simplejpeg stops at the first warning, and a missing end may be the second. A decoder that ran
    out of data takes what is put before the end mark, and its pixels change; one that did not skips
    it.
    """
    if _MISSING.search(said):
        return True
    whole = bytes(content)
    end = _end_mark(whole)
    if end is None:  # no end mark at all: every decoder calls that truncated
        return False
    pixels = _by_pillow(whole)
    if pixels is None:
        return False
    longer = _by_pillow(whole[:end] + _MORE + whole[end:])
    return longer is not None and longer != pixels


def _by_pillow(content: bytes) -> bytes | None:
    """The pixels; None if Pillow refuses this JPEG."""
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=("JPEG",)) as opened,
        ):
            return opened.tobytes()
    except MemoryError:
        raise
    except Exception:  # as in posted_images: of any type, for damaged bytes
        return None


def has_all_parts(content: Content) -> bool:
    """Whether a JPEG has a header, rows and an end mark, each where the one before it ends."""
    codes = {code for _, code in _marks(bytes(content))}
    return {_SCAN, _END} <= codes


def _end_mark(content: bytes) -> int | None:
    """Where the end mark of the first image begins: an MPO has more images behind it."""
    return next((start for start, code in _marks(content) if code == _END), None)


def _marks(content: bytes) -> Iterator[tuple[int, int]]:
    """(start, code) of each mark up to the first end mark."""
    at = 2
    while (found := _MARK.search(content, at)) is not None:
        at = found.end()
        yield found.start(), content[at - 1]
        if content[at - 1] == _END:
            return
        at += int.from_bytes(content[at : at + 2], "big")  # of a segment; the length counts itself
