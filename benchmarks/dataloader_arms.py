"""The two loaders that dataloader.py compares: ours, and torch's over the same stages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmsa.data.loading.workers import AHEAD, start_forkserver
from mmsa.data.stream import Loader
from mmsa.process.memory import keep_freed_memory


@dataclass
class Pipelines(IterableDataset[Any]):
    """The stages of our loader for torch's; worker n of n iterates over pipeline n."""

    pipelines: list[Any]

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        assert worker is not None
        return iter(self.pipelines[worker.id])


def unchanged(item: Any) -> Any:
    return item


def prepare_worker(_: int) -> None:
    keep_freed_memory()


def batches_of(arm: str, stages: Any, num_workers: int, timeout_s: float = 300.0) -> Iterator[Any]:
    """The batches of one arm; its workers have been started when this returns."""
    requests, preprocessing, tokenizer, augmentation = stages
    pinned = torch.cuda.is_available()
    if arm == "ours":
        return Loader(
            requests, preprocessing, tokenizer, num_workers, augmentation, pinned,
            timeout_s=timeout_s,
        )  # fmt: skip
    start_forkserver()  # the same imports, done once
    source = Loader(requests, preprocessing, tokenizer, 0, augmentation)
    loader = DataLoader(
        Pipelines([source._pipeline(number, num_workers) for number in range(num_workers)]),
        batch_size=None,
        collate_fn=unchanged,
        num_workers=num_workers,
        prefetch_factor=AHEAD,
        persistent_workers=True,
        multiprocessing_context="forkserver",
        pin_memory=pinned,
        timeout=timeout_s,
        worker_init_fn=prepare_worker,
    )
    return iter(loader)


def loader_workers() -> set[int]:
    """Process ids of all loader workers of this process: the children of its fork server."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.ppid() != os.getpid()}
