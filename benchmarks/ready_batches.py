"""A stage of a loader that costs nothing; not in `handover.py`, which workers do not import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Ready:
    """The same batch again and again, so that passing it to the rank is the only cost."""

    batch: dict[str, Any]
    number: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.batch for _ in range(self.number))
