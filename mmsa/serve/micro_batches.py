"""Rows that wait together are computed together, by one thread or a few.

A batch begins with the row that has waited longest, so no row is passed over for ever; the other
places go to the rows whose texts are closest to it in length. A thread waits for more rows only
while a request is being decoded, and at most `max_wait_s`: a single client never waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A row: rows of different models are never in one batch."""

    @property
    def model(self) -> Any: ...

    @property
    def length(self) -> int: ...


RowT = TypeVar("RowT", bound=Waiting)
ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class _Item(Generic[RowT, ResultT]):
    row: RowT
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[ResultT]
    arrived: float = field(default_factory=time.monotonic)


class MicroBatches(Generic[RowT, ResultT]):
    """The queue between requests, on an event loop, and the threads that compute."""

    def __init__(
        self,
        compute: Callable[[Sequence[RowT]], Sequence[ResultT]],
        *,
        max_batch: int,
        max_wait_s: float,
        threads: int = 1,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`compute` gives one result for each of at most `max_batch` rows, in one of `threads`
        threads; what it raises, each of these rows raises. `observe` is told the size of each
        batch."""
        self._compute = compute
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._observe = observe
        self._changed = threading.Condition()
        self._items: list[_Item[RowT, ResultT]] = []
        self._coming = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"compute-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Compute what still waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __len__(self) -> int:
        """The number of rows that wait."""
        return len(self._items)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While rows are being made that will be added soon; a batch may wait for them."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify_all()

    def results(self, rows: Sequence[RowT]) -> Awaitable[list[ResultT]]:
        """Put `rows` into the queue at once; awaiting what is returned gives their results, which
        may be computed in different batches."""
        loop = asyncio.get_running_loop()
        items = [_Item[RowT, ResultT](row, loop, loop.create_future()) for row in rows]
        with self._changed:
            assert not self._closed, "the queue has been closed"
            self._items += items
            self._changed.notify_all()
        return _gathered(items)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)

    def _next_batch(self) -> list[_Item[RowT, ResultT]]:
        """The rows of the next batch, taken from the queue; none once it is closed and empty."""
        with self._changed:
            while True:
                self._items = [item for item in self._items if not item.future.cancelled()]
                if not self._items:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left = self._items[0].arrived + self._max_wait_s - time.monotonic()
                enough = len(self._items) >= self._max_batch or not self._coming
                if enough or left <= 0 or self._closed:
                    break
                self._changed.wait(left)
            chosen = self._chosen()
            taken = set(map(id, chosen))
            self._items = [item for item in self._items if id(item) not in taken]
            return chosen

    def _chosen(self) -> list[_Item[RowT, ResultT]]:
        oldest = self._items[0].row
        fitting = [item for item in self._items if item.row.model is oldest.model]
        fitting.sort(key=lambda item: abs(item.row.length - oldest.length))  # stable: by arrival
        return fitting[: self._max_batch]

    def _answer(self, batch: list[_Item[RowT, ResultT]]) -> None:
        self._observe(len(batch))
        found: Sequence[ResultT] | BaseException
        try:
            found = self._compute([item.row for item in batch])
        except BaseException as error:
            found = error
        for loop in {id(item.loop): item.loop for item in batch}.values():
            mine = [at for at, item in enumerate(batch) if item.loop is loop]
            try:
                loop.call_soon_threadsafe(_settle, [batch[at] for at in mine], found, mine)
            except RuntimeError:
                continue  # the loop has ended: nobody waits


async def _gathered(items: list[_Item[RowT, ResultT]]) -> list[ResultT]:
    try:
        return list(await asyncio.gather(*(item.future for item in items)))
    finally:
        for item in items:  # after a timeout nobody waits for them
            item.future.cancel()


def _settle(items: list[Any], found: Any, places: list[int]) -> None:
    """Give the items their results, on their event loop."""
    for item, place in zip(items, places, strict=True):
        if item.future.done():
            continue
        if isinstance(found, BaseException):
            item.future.set_exception(found)
        else:
            item.future.set_result(found[place])
