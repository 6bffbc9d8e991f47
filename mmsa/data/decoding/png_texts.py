"""A PNG without its texts: Pillow refuses to open one whose text chunks are large."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = struct.Struct(">I4s")  # length of the data, type; a checksum of 4 bytes follows the data
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # colour profiles are ignored anyway
_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # read by Pillow from these
_SMALL = 65_536  # bytes


def without_texts(png: bytes) -> bytes:
    """`png` without texts and colour profile. Small ones that may give an orientation stay."""
    kept = [SIGNATURE]
    at = len(SIGNATURE)
    while at + _HEAD.size <= len(png):
        length, kind = _HEAD.unpack_from(png, at)
        after = at + _HEAD.size + length + 4
        begin = at + _HEAD.size
        orientation = length <= _SMALL and png[begin : begin + 32].startswith(_ORIENTATION)
        if kind not in _TEXTS or orientation:
            kept.append(png[at:after])
        at = after
    return b"".join(kept)
