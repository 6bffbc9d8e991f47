"""Pipelines for loader workers; a module, because workers are started by forkserver."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmsa.data.loading.worker_position import record_position


@dataclass
class Numbers:
    """Batches that hold `start`, `start + step`, ... below `stop`."""

    start: int
    step: int
    stop: int

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.start, self.stop, self.step):
            yield {"number": number, "row": torch.full((3,), number)}


@dataclass
class Noted:
    """Endless batches; appends a byte to `file` as it begins each."""

    file: Path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            with self.file.open("ab") as stream:
                stream.write(b".")
            yield {"images": torch.zeros(1 << 20, dtype=torch.uint8)}


class Failing:
    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"number": 0}
        raise ZeroDivisionError("a mistake of ours")


class Dying:
    """Is killed while it makes its second batch."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"number": 0}
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging:
    """Notes a shard before its second batch, and is stopped there as by a dead file system."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"number": 0}
        record_position("train-00007.tar")
        os.kill(os.getpid(), signal.SIGSTOP)
        yield {"number": 1}


class Tensors:
    """One batch with every kind of value that travels."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield tensors()


def tensors() -> dict[str, Any]:
    numbers = torch.arange(24, dtype=torch.int64)
    return {
        "keys": ["a", "é" * 3000],
        "images": (numbers % 255).to(torch.uint8).reshape(2, 3, 4),
        "turned": numbers.reshape(4, 6).T,
        "channels_last": numbers.reshape(2, 2, 2, 3).permute(0, 3, 1, 2),
        "weights": torch.tensor([1.0, float("nan"), -0.0]),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(7),
        "input_ids": None,
        "num_real": 2,
    }


class Slow:
    """Endless batches, each a tenth of a second late."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            time.sleep(0.1)
            yield {"number": 0}


if __name__ == "__main__":
    # A rank with two workers that reads a batch of each, and then on and on with little patience.
    import pipelines  # workers do not import the script that started them

    from mmsa.data.loading.workers import LoaderWorkers

    workers = LoaderWorkers([pipelines.Slow(), pipelines.Slow()])
    read = [next(workers) for _ in range(2)]
    workers.timeout_s = 3
    print("ready", flush=True)
    for _ in workers:
        pass
