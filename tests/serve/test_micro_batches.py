"""Rows that wait together are computed together; none is passed over, lost or answered twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa.serve.lanes import Lanes
from mmsa.serve.micro_batches import MicroBatches


@dataclass(frozen=True)
class Row:
    number: int
    length: int
    model: str = "one"


def started(compute: object, **options: float) -> MicroBatches[Row, int]:
    given = {"max_batch": 4, "max_wait_s": 0.0, **options}
    queue: MicroBatches[Row, int] = MicroBatches(compute, **given)  # type: ignore[arg-type]
    queue.start()
    return queue


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from(["one", "two"])), min_size=1, max_size=40
    ),
    max_batch=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_each_row_is_computed_once_with_rows_of_its_model(
    rows: list[tuple[int, str]], max_batch: int, threads: int
) -> None:
    seen: list[int] = []

    def compute(batch: Sequence[Row]) -> list[int]:
        assert 1 <= len(batch) <= max_batch
        assert len({row.model for row in batch}) == 1
        seen.extend(row.number for row in batch)
        return [2 * row.number for row in batch]

    async def ask() -> list[list[int]]:
        asked = [
            queue.results([Row(number, length, model)])
            for number, (length, model) in enumerate(rows)
        ]
        return await asyncio.gather(*asked)

    queue = started(compute, max_batch=max_batch, threads=threads)
    assert asyncio.run(ask()) == [[2 * number] for number in range(len(rows))]
    queue.close()
    assert sorted(seen) == list(range(len(rows)))


def test_the_oldest_row_is_next_and_takes_rows_of_its_length_with_it() -> None:
    held, batches = threading.Event(), []

    def compute(batch: Sequence[Row]) -> list[int]:
        batches.append([row.length for row in batch])
        held.wait(10)
        return [0] * len(batch)

    async def ask() -> None:
        first = asyncio.ensure_future(queue.results([Row(0, 1)]))
        while not batches:
            await asyncio.sleep(0.001)
        rest = queue.results([Row(1, length) for length in (30, 2, 31, 3, 29, 32)])
        held.set()
        await first
        await rest

    queue = started(compute)
    asyncio.run(ask())
    queue.close()
    assert batches == [[1], [30, 31, 29, 32], [2, 3]]


def test_a_batch_waits_for_rows_that_are_being_made() -> None:
    sizes: list[int] = []

    async def ask(wait_for_it: bool) -> None:
        with queue.coming():
            first = queue.results([Row(0, 1)])
            second = None
            if wait_for_it:
                await asyncio.sleep(0.05)
                second = queue.results([Row(1, 1)])
        await first
        if second is not None:
            await second

    def compute(batch: Sequence[Row]) -> list[int]:
        sizes.append(len(batch))
        return [0] * len(batch)

    queue = started(compute, max_wait_s=20)
    asyncio.run(ask(True))
    asyncio.run(ask(False))
    queue.close()
    assert sizes == [2, 1]


def test_an_error_reaches_all_rows_of_its_batch_and_no_other() -> None:
    def compute(batch: Sequence[Row]) -> list[int]:
        if any(row.number == 1 for row in batch):
            raise RuntimeError("broken")
        return [0] * len(batch)

    queue = started(compute, max_batch=2)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(asyncio.wait_for(_all(queue, [Row(1, 1), Row(2, 1)]), 10))
    assert asyncio.run(_all(queue, [Row(3, 1)])) == [0]
    queue.close()


def test_closing_answers_what_waits() -> None:
    gate = threading.Event()

    def compute(batch: Sequence[Row]) -> list[int]:
        gate.wait(10)
        return [row.number for row in batch]

    async def ask() -> list[int]:
        waiting = asyncio.ensure_future(queue.results([Row(number, 1) for number in range(20)]))
        closing = asyncio.ensure_future(asyncio.to_thread(queue.close))
        gate.set()
        await closing
        return await waiting

    queue = started(compute)
    assert asyncio.run(ask()) == list(range(20))


async def _all(queue: MicroBatches[Row, int], rows: list[Row]) -> list[int]:
    return await queue.results(rows)


def test_threads_compute_at_the_same_time_and_a_batch_that_is_alone_has_all_cores() -> None:
    lanes, shares = Lanes(["a", "b"], threads=4), []
    together = threading.Barrier(2)

    def compute(batch: Sequence[Row]) -> list[int]:
        with lanes.one() as name:
            if batch[0].number:
                together.wait(30)  # broken unless two batches are here
            shares.append((name, torch.get_num_threads()))
            if batch[0].number:
                together.wait(30)
        return [0] * len(batch)

    before = torch.get_num_threads()
    queue = started(compute, max_batch=1, threads=2)
    asyncio.run(_all(queue, [Row(0, 1)]))
    asyncio.run(_all(queue, [Row(1, 1), Row(2, 1)]))
    queue.close()
    assert [share for _, share in shares][0] == 4
    assert sorted(share for _, share in shares[1:]) == [2, 4]  # the first of two began alone
    assert {name for name, _ in shares[1:]} == {"a", "b"}
    assert torch.get_num_threads() == before  # of this thread
