"""Progress of a long command: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_LOG_EVERY_S = 10.0


class Progress:
    """Shows on stderr how many of `total` units are done, how fast, and the time that is left.

    A context manager; `quiet` shows nothing.
    """

    def __init__(self, *, total: int, what: str, quiet: bool, unit: str = "samples") -> None:
        self._total, self._what, self._quiet, self._unit = total, what, quiet, unit
        self._done = 0
        self._started = self._shown = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit=unit, leave=False)

    def advance(self, number: int = 1) -> None:
        """`number` more units are done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif not self._quiet and time.monotonic() - self._shown >= _LOG_EVERY_S:
            self._shown = time.monotonic()
            rate = self._done / (self._shown - self._started)
            left_s = round((self._total - self._done) / rate)
            print(
                f"{self._what}: {self._done} of {self._total}, {rate:.3g} {self._unit}/s, "
                f"{left_s // 60}:{left_s % 60:02d} min left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(items: Iterable[T], *, total: int, what: str, quiet: bool) -> Iterator[T]:
    """Yield `items`, showing on stderr how many of `total` are done; nothing if `quiet`."""
    with Progress(total=total, what=what, quiet=quiet) as shown:
        for item in items:
            yield item
            shown.advance()
