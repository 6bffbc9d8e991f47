"""Batches to a GPU on a stream of their own, one ahead, so that no step waits for its input.

A thread takes the next batch from the loader, copies it to pinned memory and from there to the
device, while the device computes with the batch before. A step waits, on the device, for the copy
of its own batch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor


class Copies(Protocol):
    """How batches get to a device; `begin` is called in a thread, `finish` where they are used."""

    def begin(self, batch: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Start to copy `batch`: (the batch on the device, what says when it is there)."""

    def finish(self, batch: dict[str, Any], done: Any) -> None:
        """Make whatever the device is told from now on wait until `batch` is there."""


class PinnedCopies:
    """Copies to pinned memory, from which copies to a GPU do not block."""

    def begin(self, batch: dict[str, Any]) -> tuple[dict[str, Any], None]:
        return _with_tensors(batch, Tensor.pin_memory), None

    def finish(self, batch: dict[str, Any], done: None) -> None:
        """It is there already."""


class CudaCopies:
    """Copies to one GPU. Nothing here waits on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = with_number(device, torch.cuda.current_device())
        self._stream = torch.cuda.Stream(self._device)

    def begin(self, batch: dict[str, Any]) -> tuple[dict[str, Any], torch.cuda.Event]:
        torch.cuda.set_device(self._device)  # of this thread, else it would open the first GPU
        with torch.cuda.stream(self._stream):
            copied = _with_tensors(
                batch, lambda one: one.pin_memory().to(self._device, non_blocking=True)
            )
            done = torch.cuda.Event()
            done.record()
        return copied, done

    def finish(self, batch: dict[str, Any], done: torch.cuda.Event) -> None:
        computing = torch.cuda.current_stream(self._device)
        computing.wait_event(done)
        for value in batch.values():
            if isinstance(value, Tensor):
                # Its memory is the copying stream's, which must not use it again before the
                # computing stream is done with it.
                value.record_stream(computing)


def with_number(device: torch.device, current: int) -> torch.device:
    """`device` with its number; one that is called "cuda" alone is the `current` one.

    Without a launcher Accelerate calls it so, and `torch.cuda.set_device` refuses that.
    """
    return torch.device(device.type, current if device.index is None else device.index)


def copied_ahead(source: Iterator[Any], copies: Copies) -> Iterator[Any]:
    """`source` with its batches (dictionaries) copied by `copies`, one ahead.

    Other items pass unchanged, and an exception of `source` is raised where its item would come.
    The thread starts with the first item, so that creating a loader does not touch the device.
    """

    def begun() -> tuple[Any, Any] | None:
        item = next(source, None)
        if item is None:
            return None
        return copies.begin(item) if isinstance(item, dict) else (item, None)

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(begun)
        while (found := coming.result()) is not None:
            coming = thread.submit(begun)
            item, done = found
            if isinstance(item, dict):
                copies.finish(item, done)
            yield item


def _with_tensors(batch: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    return {
        name: change(value) if isinstance(value, Tensor) else value for name, value in batch.items()
    }
