"""How long a launch takes to its first step or batch, part by part: one line in the log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from time import time
from typing import Any

logger = logging.getLogger("mmsa")


class StartClock:
    """Measures wall time in seconds; `mark` ends a part."""

    def __init__(
        self, until: str = "first step", *, from_process_start: bool | None = None
    ) -> None:
        """`until` names in the log line what the first batch is needed for.

        `from_process_start`: the command began with the process, imports included. By default it
        did if torch is not imported yet; in a notebook it did not.
        """
        self._until = until
        self._logged = False
        self._parts: dict[str, float] = {}
        self._last = time()
        if "torch" not in sys.modules if from_process_start is None else from_process_start:
            import psutil

            self._last = psutil.Process().create_time()

    def mark(self, part: str) -> None:
        """Everything since the last mark was `part`."""
        now = time()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def first_batch(self) -> None:
        """The first batch has arrived: log the line. Later calls do nothing."""
        if not self._logged:
            self._logged = True
            self.mark("first batch")
            logger.info("%s", self.in_words())

    def first_of(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield `batches`, calling `first_batch` when the first one has arrived, before its use."""
        if not self._logged:
            self.mark("other")
        for batch in batches:
            self.first_batch()
            yield batch

    def in_words(self) -> str:
        """`start: 7.1 s to the first step (imports 4.2, ...)`."""
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
        return f"start: {sum(self._parts.values()):.1f} s to the {self._until} ({parts})"
