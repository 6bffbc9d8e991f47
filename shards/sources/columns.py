"""Which column of a table is the text, the image, the label, the id; and ids that repeat."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmsa.errors import UserError
from shards.example import Reason, Reject


def find_column(
    columns: Sequence[str],
    given: str | None,
    usual: Sequence[str],
    *,
    what: str,
    flag: str,
    separated_by: str | None = None,
    otherwise: str = "",
) -> str:
    """The column named `given`; where that is None, the one with a usual name, in any case.

    Raises `UserError` where none or several match; it names `separated_by`, what separates the
    fields of the file, and where none was named and found, what to do `otherwise`.
    """
    if given is not None and columns.count(given) == 1:
        return given
    wanted = [given] if given is not None else list(usual)
    folded = {name.strip().casefold() for name in wanted}
    found = [name for name in columns if name.strip().casefold() in folded]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    problem = f"has no column '{given}'" if given is not None else f"has no column for the {what}"
    if found:
        problem = f"has {len(found)} columns for the {what}: {', '.join(found)}"
    how = f" (separated by {separated_by})" if separated_by else ""
    raise UserError(
        f"the table {problem}. Its columns{how}: {shown}. Name one with {flag}"
        + (
            ""
            if given is not None
            else f"; names that are recognised automatically: {', '.join(usual)}"
        )
        + (otherwise if given is None and not found else "")
    )


@dataclass
class Repetitions:
    """Ids that have several rows. Note every row first, then check each.

    Where the rows of an id are equal, the first counts; where they differ, none does.
    """

    _first: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _differing: set[str] = field(default_factory=set)

    def note(self, source_id: str, number: int, content: Sequence[object]) -> None:
        """Note that row `number` has `content` for `source_id`."""
        shown = repr(tuple(content)).encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(shown).digest()[:16]
        if self._first.setdefault(source_id, (number, digest))[1] != digest:
            self._differing.add(source_id)

    def check(self, source_id: str, number: int) -> None:
        """Raise `Reject` where row `number` is not the one that counts for `source_id`."""
        first = self._first[source_id][0]
        if source_id in self._differing:
            raise Reject(Reason.ID_REPEATED, f"row {number}; its rows differ, the first is {first}")
        if number != first:
            raise Reject(Reason.ID_REPEATED, f"row {number} says the same as row {first}")
