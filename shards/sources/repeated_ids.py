"""Ids that several rows of a table have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from shards.example import Reason, Reject


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
