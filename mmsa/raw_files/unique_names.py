"""Names for the columns of a table of which several have the same name."""

from __future__ import annotations

from collections.abc import Sequence


def unique_names(columns: Sequence[str]) -> tuple[str, ...]:
    """`columns` with `.1`, `.2`, ... behind the repetitions of a name, as pandas reads them."""
    found: list[str] = []
    for column in columns:
        name, number = column, 0
        while name in found or (number and name in columns):
            number += 1
            name = f"{column}.{number}"
        found.append(name)
    return tuple(found)
