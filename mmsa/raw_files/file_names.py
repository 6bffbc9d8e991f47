"""Names of files as the world has them: cameras write `1.JPG`, and macOS writes `é` as two
characters.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

# Names of images, in lower case. The content decides what an image is (posted_images).
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".bmp", ".avif", ".tif",
    ".tiff",
)  # fmt: skip
TEXT_SUFFIX = ".txt"


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image, in any letter case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_text_name(name: str) -> bool:
    """Whether a file is called like a text, in any letter case."""
    return os.path.splitext(name)[1].lower() == TEXT_SUFFIX


def shown_stem(name: str) -> str:
    """`name` without its suffix, and escapes for what is not Unicode: file names need not be."""
    return os.fsencode(os.path.splitext(name)[0]).decode("utf-8", "backslashreplace")


def composed(name: str) -> str:
    """`name` with each accented letter as one character (NFC): equal for names that look equal."""
    return unicodedata.normalize("NFC", name)


def same_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of two and more different names that look equal, in the order of the first."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name if name.isascii() else composed(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
