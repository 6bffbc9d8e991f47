"""Damage to files: what a disk, a copy or a power failure does to them."""

from __future__ import annotations

import os
from pathlib import Path


def flip_bit(path: Path, bit: int = -1) -> None:
    """Flip one bit of a file, counted from its start or, if negative, from its end."""
    content = bytearray(path.read_bytes())
    place = bit % (8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def same_size_garbage(path: Path) -> None:
    path.write_bytes(b"\xb5" * path.stat().st_size)


def cut(path: Path, num_bytes: int) -> None:
    os.truncate(path, num_bytes)
