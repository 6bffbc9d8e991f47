"""The way of a sample from its shard to a batch, as a flat list of stages in the order of travel.

    requests -> ReadSamples -> DecodeImages -> Collate -> errors_as_items

A request says which samples make up one micro-batch; it is made by the arithmetic of plan.py, so
nothing is split, shuffled or counted here. Stages are top-level picklable callables, because loader
workers are started by forkserver. Legend: B batch, T tokens, S input side in pixels.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from mmsa.data import images
from mmsa.data.plan import (
    BatchPlan,
    IntArray,
    Order,
    deal,
    evaluation_batches,
    evaluation_order,
)
from mmsa.data.preprocessing import Preprocessing
from mmsa.data.reader import RawSample, SplitReader
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage, UserError
from mmsa.labels import ClassMap

# {"keys": list of B, "input_ids" (B, T), "attention_mask" (B, T), "images" uint8 (B, 3, S, S),
#  "labels" (B,), "targets" (B, C) or None, "weights" (B,) 1 or 0,
#  "num_real": rows of weight 1, as a Python number}
Batch = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """The samples of one micro-batch of one rank. Rows past `num_real` have weight 0."""

    epoch: int
    shards: IntArray  # (B,)
    ordinals: IntArray  # (B,)
    num_real: int


@dataclass
class Fetched:
    """A request with what has been read for it so far."""

    request: Request
    samples: list[RawSample]
    images: Tensor | None = None  # uint8 (B, 3, S, S)


def _of_this_worker(requests: Iterable[Request]) -> Iterator[Request]:
    """Every n-th request for worker n of n: a loader collects from its workers in turn, so the
    order of the requests is the order of the batches."""
    worker = get_worker_info()
    for number, request in enumerate(requests):
        if worker is None or number % worker.num_workers == worker.id:
            yield request


@dataclass
class TrainRequests:
    """The micro-batches of `rank` from optimizer step `start_step` up to `stop_step`."""

    reader: SplitReader
    plan: BatchPlan
    rank: int
    seed: int
    window_shards: int
    bucket_by_length: bool
    start_step: int
    stop_step: int

    def __call__(self) -> Iterator[Request]:
        return _of_this_worker(self._all())

    def _all(self) -> Iterator[Request]:
        order, order_epoch = None, -1
        for step in range(self.start_step, self.stop_step):
            epoch, start, stop = self.plan.locate(step)
            if order is None or epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
            shards, ordinals = order.slice(start, stop)
            lengths = self._text_lengths(shards, ordinals) if self.bucket_by_length else None
            for positions in deal(lengths, len(shards), self.plan, self.rank):
                # An empty micro-batch of a last incomplete step: one row of weight 0, because all
                # ranks must run equally many forward passes.
                rows = positions if len(positions) else np.zeros(1, dtype=np.int64)
                yield Request(epoch, shards[rows], ordinals[rows], len(positions))

    def _order(self, epoch: int) -> Order:
        return Order(
            self.reader.sizes,
            identity=self.reader.identity,
            seed=self.seed,
            epoch=epoch,
            window_shards=self.window_shards,
        )

    def _text_lengths(self, shards: IntArray, ordinals: IntArray) -> IntArray:
        lengths = np.empty(len(shards), dtype=np.int64)
        for shard in np.unique(shards):
            rows = shards == shard
            lengths[rows] = self.reader.records(int(shard))["text_length"][ordinals[rows]]
        return lengths


@dataclass
class EvaluationRequests:
    """The evaluation batches of `rank`, the whole split once; again and again with `repeat`.

    Every batch has `batch_size` rows; the last real one is filled up with rows of weight 0, and a
    rank without a batch gets one of weight 0.
    """

    reader: SplitReader
    batch_size: int
    world_size: int
    rank: int
    repeat: bool = False

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank."""
        num_batches = -(-len(self.reader) // self.batch_size)
        return -(-num_batches // self.world_size)

    def __call__(self) -> Iterator[Request]:
        return _of_this_worker(self._all())

    def _all(self) -> Iterator[Request]:
        places, records = self.reader.all_records()
        places = places[evaluation_order(records["text_length"], records["key_hash"])]
        while len(places):  # an empty split ends at once, instead of repeating nothing for ever
            for start, stop in evaluation_batches(
                len(places),
                batch_size=self.batch_size,
                world_size=self.world_size,
                rank=self.rank,
            ):
                rows = np.minimum(np.arange(start, start + self.batch_size), max(stop - 1, 0))
                yield Request(0, places[rows, 0], places[rows, 1], stop - start)
            if not self.repeat:
                return


@dataclass
class ReadSamples:
    """Read the samples of each request out of their tars."""

    reader: SplitReader

    def __call__(self, source: Iterable[Request]) -> Iterator[Fetched]:
        for request in source:
            places = zip(request.shards.tolist(), request.ordinals.tolist(), strict=True)
            yield Fetched(request, [self.reader.read(shard, row) for shard, row in places])


@dataclass(frozen=True)
class Augmentation:
    """Settings of the random view of training pictures."""

    seed: int
    min_crop_scale: float
    flip_probability: float


@dataclass
class DecodeImages:
    """JPEG bytes to uint8 (B, 3, S, S); without `augmentation`, the evaluation's view."""

    preprocessing: Preprocessing
    augmentation: Augmentation | None = None

    def __call__(self, source: Iterable[Fetched]) -> Iterator[Fetched]:
        for fetched in source:
            views = [self._view(sample, fetched.request.epoch) for sample in fetched.samples]
            fetched.images = torch.stack(views)
            yield fetched

    def _view(self, sample: RawSample, epoch: int) -> Tensor:
        try:
            picture = images.decode(sample.image)
        except ValueError as error:
            raise ShardDamage(
                f"the picture of {sample.key} in {sample.shard} does not decode ({error}). "
                "Pack the data again",
                shard=sample.shard,
                key=sample.key,
            ) from None
        if self.augmentation is None:
            return images.evaluation_view(picture, self.preprocessing)
        return images.training_view(
            picture,
            self.preprocessing,
            seed=self.augmentation.seed,
            epoch=epoch,
            sample=sample.key_hash,
            min_crop_scale=self.augmentation.min_crop_scale,
            flip_probability=self.augmentation.flip_probability,
        )


@dataclass
class Collate:
    """Tokenize and stack. Without a tokenizer the batch has no token ids.

    With `soft_classes` the batch has `targets` (B, C): the annotators' shares in `soft_label` of
    `key.json`, merged as the classes are and scaled to sum 1 over those that are kept.
    """

    tokenizer: TextTokenizer | None
    soft_classes: ClassMap | None = None

    def __call__(self, source: Iterable[Fetched]) -> Iterator[Batch]:
        for fetched in source:
            samples, num_real = fetched.samples, fetched.request.num_real
            input_ids, attention_mask = None, None
            if self.tokenizer is not None:
                input_ids, attention_mask = self.tokenizer([sample.text for sample in samples])
            weights = torch.zeros(len(samples))
            weights[:num_real] = 1.0
            targets = None
            if self.soft_classes is not None:
                targets = torch.stack([self._target(sample) for sample in samples])
            yield {
                "keys": [sample.key for sample in samples],
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "images": fetched.images,
                "labels": torch.tensor([sample.label for sample in samples]),
                "targets": targets,
                "weights": weights,
                "num_real": num_real,
            }

    def _target(self, sample: RawSample) -> Tensor:
        assert self.soft_classes is not None
        target = torch.zeros(len(self.soft_classes.names))
        for name, share in sample.meta.get("soft_label", {}).items():
            label = self.soft_classes.label_of(name)
            if label is not None:
                target[label] += share
        if not target.sum() > 0:
            raise ShardDamage(
                f"{sample.key} in {sample.shard} has no soft_label, though the manifest says that "
                "the labels are soft. Pack the data again",
                shard=sample.shard,
                key=sample.key,
            )
        return target / target.sum()


@dataclass(frozen=True)
class Failure:
    """A user's error on its way from a loader worker; a bare exception would lose its type."""

    error: UserError


def errors_as_items(source: Iterable[Batch]) -> Iterator[Batch | Failure]:
    """End the stream with a `Failure` where a stage raised a `UserError`."""
    try:
        yield from source
    except UserError as error:
        yield Failure(error)


@dataclass
class Loader:
    """Batches from the stages, read by `num_workers` processes ahead of their use.

    Workers start when the object is made: make it before the device is touched. torch's DataLoader
    serves rather than `wds.WebLoader`, which starts its workers at the first batch only. It is
    never passed to `Accelerator.prepare`, which would split the batches among ranks again.
    """

    requests: TrainRequests | EvaluationRequests
    preprocessing: Preprocessing  # without image settings, pictures are not decoded
    tokenizer: TextTokenizer | None  # None: texts are not tokenized
    num_workers: int
    augmentation: Augmentation | None = None
    pin_memory: bool = False
    soft_classes: ClassMap | None = None
    _iterator: Iterator[Batch | Failure] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stages: list[Any] = [self.requests, ReadSamples(self.requests.reader)]
        if self.preprocessing.image is not None:
            stages.append(DecodeImages(self.preprocessing, self.augmentation))
        pipeline = wds.DataPipeline(
            *stages, Collate(self.tokenizer, self.soft_classes), errors_as_items
        )
        loader: DataLoader[Batch | Failure] = DataLoader(
            pipeline,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            multiprocessing_context="forkserver" if self.num_workers else None,
        )
        if self.num_workers:
            # Each worker is forked from a server that has done the slow imports once.
            multiprocessing.set_forkserver_preload(["mmsa.data.stream"])
        self._iterator = iter(loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = next(self._iterator)
        if isinstance(item, Failure):
            raise item.error
        return item
