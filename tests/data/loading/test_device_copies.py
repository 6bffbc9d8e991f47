"""Batches are copied one ahead of their use, each waited for alone; on a CPU with a fake stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mmsa.data.loading.device_copies import copied_ahead, with_number


@dataclass
class FakeStream:
    """Notes in which order copies begin and are waited for."""

    notes: list[str] = field(default_factory=list)

    def begin(self, batch: dict[str, Any]) -> tuple[dict[str, Any], str]:
        self.notes.append(f"copy {batch['number']}")
        return {**batch, "copied": True}, f"event {batch['number']}"

    def finish(self, batch: dict[str, Any], done: str) -> None:
        assert batch["copied"]
        self.notes.append(f"wait for {done}")


def numbered(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"number": number}


def test_the_next_copy_begins_before_a_batch_is_used() -> None:
    stream = FakeStream()
    used = []
    for batch in copied_ahead(numbered(3), stream):
        if batch["number"] < 2:  # the thread has been told already; it needs a moment
            while f"copy {batch['number'] + 1}" not in stream.notes:
                pass
        stream.notes.append(f"step {batch['number']}")
        used.append(batch)
    assert used == [{"number": number, "copied": True} for number in range(3)]
    for number in range(3):
        at = {note: place for place, note in enumerate(stream.notes)}
        assert at[f"copy {number}"] < at[f"wait for event {number}"] < at[f"step {number}"]
        if number:
            assert at[f"copy {number}"] < at[f"step {number - 1}"]
            assert at[f"wait for event {number}"] > at[f"step {number - 1}"]


def test_nothing_is_read_before_the_first_batch_and_one_at_most_ahead() -> None:
    stream = FakeStream()
    batches = copied_ahead(numbered(9), stream)
    assert stream.notes == []
    next(batches)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # waits for the thread
    assert [note for note in stream.notes if note.startswith("copy")] == [
        "copy 0",
        "copy 1",
        "copy 2",
    ]


def test_other_items_pass_and_an_error_comes_in_its_place() -> None:
    def source() -> Iterator[Any]:
        yield {"number": 0}
        yield "a failure"
        raise ValueError("of the loader")

    stream = FakeStream()
    batches = copied_ahead(source(), stream)
    assert next(batches) == {"number": 0, "copied": True}
    assert next(batches) == "a failure"
    assert stream.notes == ["copy 0", "wait for event 0"]
    with pytest.raises(ValueError, match="of the loader"):
        next(batches)


def test_a_gpu_without_a_number_is_the_current_one() -> None:
    """torch's own function, which the copying thread calls, takes no other."""
    from torch.cuda._utils import _get_device_index

    with pytest.raises(ValueError, match="specified index"):
        _get_device_index(torch.device("cuda"))
    assert _get_device_index(with_number(torch.device("cuda"), 3)) == 3
    assert _get_device_index(with_number(torch.device("cuda:1"), 3)) == 1
