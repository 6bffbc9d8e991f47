"""How long a launch takes to its first step or batch, in parts: one line in the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from time import time
from typing import Any

logger = logging.getLogger("mmsa")


class StartClock:
    """Made before the heavy imports; `mark` ends a part. Seconds, by the clock.

    `until` says in the line what the first batch is there for.
    """

    def __init__(self, until: str = "first step") -> None:
        self._until = until
        self._told = False
        self._parts: dict[str, float] = {}
        self._last = time()
        # A process that has torch already (a notebook's) did not begin with this command.
        if "torch" not in sys.modules:
            import psutil

            self._last = psutil.Process().create_time()

    def mark(self, part: str) -> None:
        """What was done since the last mark, or since the process began, was `part`."""
        now = time()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def first_of(self, batches: Iterator[Any]) -> Iterator[Any]:
        """`batches`; the line is logged when the first one is there, before its use.

        Once: the second report of a command is no part of its start.
        """
        if self._told:
            yield from batches
            return
        self._told = True
        self.mark("other")
        first = next(batches, None)
        if first is None:
            return
        self.mark("first batch")
        logger.info("%s", self.in_words())
        yield first
        yield from batches

    def in_words(self) -> str:
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        return f"start: {sum(self._parts.values()):.1f} s to the {self._until} ({parts})"
