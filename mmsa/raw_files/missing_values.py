"""The words that programs write where a table has no value."""

from __future__ import annotations

# What pandas, R, Excel and databases write; those that pandas reads as missing.
_WORDS = frozenset(
    [
        *("nan", "-nan", "null", "none", "na", "n/a", "nat", "<na>", "#n/a", "#na", "#null!"),
        *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
    ]
)


def is_missing(text: str) -> bool:
    """Whether `text` is empty, or a word for a missing value such as `NaN`, `null` or `N/A`."""
    plain = text.strip().casefold()
    return not plain or plain in _WORDS
