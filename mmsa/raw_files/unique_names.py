"""Names for the columns of a table of which several have the same name."""

from __future__ import annotations

from collections.abc import Sequence


def unique_names(columns: Sequence[str]) -> tuple[str, ...]:
    """`columns` with `.1`, `.2`, ... behind the repetitions of a name, as pandas reads them."""
    given, numbers = set(columns), dict[str, int]()
    found: dict[str, None] = {}  # in their order
    for column in columns:
        name, number = column, numbers.get(column, 0)
        while name in found or (number and name in given):
            number += 1
            name = f"{column}.{number}"
        numbers[column] = number  # else many blank headers would be tried against each other
        found[name] = None
    return tuple(found)
