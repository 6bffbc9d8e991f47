"""Sizes in bytes as people write and read them: `200GB`, `1.5TiB`."""

from __future__ import annotations

import re
from typing import Any

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kKMGT])(i?))?B?")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def bytes_of(value: Any) -> Any:
    """Bytes of `200GB` (powers of 1,000) or `1.5TiB` (of 1,024); other values unchanged."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value
    number, unit, binary = match.groups()
    power = _POWERS[unit] if unit else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def size_in_words(size: int) -> str:
    """`size` bytes with a unit of powers of 1,000, as in 1.5 GB."""
    amount, units = float(size), ["bytes", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}" if units[0] != "bytes" else f"{size} bytes"
