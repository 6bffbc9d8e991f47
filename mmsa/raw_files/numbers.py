"""One rule for numbers as text: a label column has the same classes in every table format.

CSV says "1.0" where Parquet has a float and XLSX knows nothing else; JSONL says 1.
"""

from __future__ import annotations

import math
import re

_WITH_POINT = re.compile(r"([+-]?)(\d*)\.(\d*)")


def plain_number(text: str) -> str:
    """`text` without the decimals that say nothing: "1.0" is "1", "-2.50" is "-2.5".

    Anything else is returned as it is: "01", "1e3" and "v1.0" are not taken for numbers here.
    """
    match = _WITH_POINT.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        return text
    sign, whole, decimals = match[1], match[2] or "0", match[3].rstrip("0")
    number = whole + ("." + decimals if decimals else "")
    return number if sign == "+" or not number.strip("0.") else sign + number


def number_in(text: str) -> float | None:
    """The finite number that `text` writes in any form ("1", "1.0", "+1", "01", "1e0"), or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def position_in(text: str, count: int) -> int | None:
    """The position that the label `text` gives in a list of `count` names, from 0; else None."""
    plain = plain_number(text)
    if not (plain.isascii() and plain.isdigit()) or len(plain) > 9:
        return None
    position = int(plain)
    return position if position < count else None
