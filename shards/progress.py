"""How far a long command is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
_LOG_EVERY_S = 10.0


def progress(items: Iterable[T], *, total: int, what: str, quiet: bool) -> Iterator[T]:
    """Yield `items`, telling on stderr how many of `total` are done; nothing where `quiet`."""
    if quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit="sample", leave=False)
    else:
        yield from _logged(items, total, what)


def _logged(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    started = told = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - told >= _LOG_EVERY_S:
            rate = done / (now - started)
            print(f"{what}: {done} of {total}, {rate:.0f} samples/s", file=sys.stderr, flush=True)
            told = now
        yield item
