"""The name of a user's data set: it begins every key, and titles reports and the data card."""

from __future__ import annotations

import hashlib
import re

# A key is a file name in a tar: NAME, a hyphen, up to 64 bytes of id, and the extension .json, for
# which a ustar header has 100 bytes.
_LONGEST = 30
_VALID = re.compile(rf"[0-9A-Za-z][0-9A-Za-z_-]{{0,{_LONGEST - 1}}}")
_HASH = 8  # hexadecimal digits
# Their keys, published splits and citations must not be taken for those of other data.
_TAKEN = ("mvsa-single", "mvsa-multiple", "mvsa-enriched", "synthetic")


def problem_of(name: str) -> str | None:
    """What is wrong with a name that a user gave, as a message after "--dataset NAME"; or None."""
    if not _VALID.fullmatch(name):
        return f"must be 1 to {_LONGEST} letters, digits, hyphens or underscores, as in my-tweets"
    if name in _TAKEN:
        return "is the name of a published set, with its own splits; give another name"
    return None


def name_from(stem: str, *, source: str) -> str:
    """The name for the data of a file or folder called `stem`, in characters of keys.

    Where letters are lost (another script, a long name) a hash keeps different names different;
    `source` begins a name that would otherwise be empty or that of a published set.
    """
    cleaned = re.sub(r"[^0-9A-Za-z_-]+", "_", stem).strip("_-")
    if not cleaned or cleaned in _TAKEN:
        cleaned = f"{source}-{cleaned}".rstrip("-")
    lost = any(letter.isalnum() and not letter.isascii() for letter in stem)
    if lost or len(cleaned) > _LONGEST:
        digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH]
        cleaned = f"{cleaned[: _LONGEST - _HASH - 1].rstrip('_-')}-{digest}"
    return cleaned
