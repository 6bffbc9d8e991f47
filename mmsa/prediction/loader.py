"""Loader processes of a prediction: from the rows of an input to batches of tensors.

Each process reads the input itself and prepares every n-th batch of those that its rank has to
compute. Legend: B batch, S input side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmsa.data.batch_requests import Request
from mmsa.data.decoding import image_views
from mmsa.data.loading.workers import LoaderWorkers
from mmsa.data.packed_texts import TextLayout
from mmsa.data.raw_sample import RawSample
from mmsa.data.read_and_decode import ReadBatch
from mmsa.data.stream import Batch, Collate, Failure, errors_as_items
from mmsa.data.text import TextTokenizer
from mmsa.prediction.batches import PieceName, Work, works_of
from mmsa.prediction.inputs.source import BadRow, Source, Window
from mmsa.preprocessing import Preprocessing
from mmsa.process.memory import keep_freed_memory

_NO_SAMPLE = RawSample("", "", b"", "", b"", 0, 0)


@dataclass(frozen=True)
class BatchStream:
    """The batches of one loader process; a batch is that of `mmsa.data.stream`, with further keys.

    `piece`, `is_last` as in `Work`; `rows`: the numbers of its rows in the input; `errors`: row ->
    reason, for rows of this batch, and in the first batch of a window for all that are not usable;
    `cells`: row -> cells, where reading the row shows them. A batch without rows has no tensors.
    """

    source: Source
    preprocessing: Preprocessing
    tokenizer: TextTokenizer | None
    batch_size: int
    done: frozenset[PieceName]
    rank: int
    world_size: int
    worker: int = 0
    num_workers: int = 1
    layout: TextLayout = TextLayout()

    def __iter__(self) -> Iterator[Batch | Failure]:
        return errors_as_items(self._batches())

    def _batches(self) -> Iterator[Batch]:
        collate = Collate(self.tokenizer, layout=self.layout)
        pieces = mine = 0
        for number, window in enumerate(self.source.windows()):
            for work in works_of(number, window, self.batch_size):
                # Pieces are dealt by their number, whether they are done or not: so ranks agree.
                if pieces % self.world_size == self.rank and work.piece not in self.done:
                    if mine % self.num_workers == self.worker:
                        yield self._prepared(window, work, collate)
                    mine += 1
                pieces += work.is_last

    def _prepared(self, window: Window, work: Work, collate: Collate) -> Batch:
        numbers = (window.first + work.places).tolist()
        errors: dict[int, str] = {}
        if work.is_first:
            errors = {window.first + place: why for place, why in window.problems.items()}
        about = {"piece": work.piece, "is_last": work.is_last, "rows": numbers, "errors": errors}
        if not numbers:
            return {**about, "cells": {}}
        images = None
        if self.preprocessing.image is not None:
            images = image_views.empty_batch(self.batch_size, self.preprocessing).zero_()
        samples, cells = [], {}
        for row, (place, number) in enumerate(zip(work.places.tolist(), numbers, strict=True)):
            try:
                loaded = self.source.load(place)
            except BadRow as error:
                errors[number] = str(error)
                samples.append(_NO_SAMPLE)
                continue
            samples.append(loaded.sample)
            if loaded.cells is not None:
                cells[number] = loaded.cells
            if images is not None and loaded.view is not None:
                images[row].copy_(loaded.view)
        return {**next(collate(iter([self._filled(samples, images)]))), **about, "cells": cells}

    def _filled(self, samples: list[RawSample], images: torch.Tensor | None) -> ReadBatch:
        """The batch with the last row repeated up to B, as in an evaluation."""
        num_real = len(samples)
        samples += samples[-1:] * (self.batch_size - num_real)
        if images is not None:
            images[num_real:] = images[num_real - 1]
        places = np.zeros(len(samples), dtype=np.int64)
        return ReadBatch(Request(0, places, places, num_real), samples, images)


def batches(stream: BatchStream, num_workers: int, *, timeout_s: float) -> Iterator[Batch]:
    """The batches of this rank, prepared by `num_workers` processes, or here where that is 0.

    The processes start at once: call it before the device is used. Raises the `UserError` of a
    process where the batch of the error would be.
    """
    keep_freed_memory()
    shares = [replace(stream, worker=n, num_workers=num_workers) for n in range(num_workers)]
    items: Iterator[Batch | Failure] = (
        LoaderWorkers(shares, rank=stream.rank, timeout_s=timeout_s) if shares else iter(stream)
    )
    return _raised(items)


def _raised(items: Iterator[Batch | Failure]) -> Iterator[Batch]:
    for item in items:
        if isinstance(item, Failure):
            raise item.error
        yield item
