"""The way of a sample from its shard to a batch, as a flat list of stages in the order of travel.

    requests -> ReadSamples -> DecodeImages -> Collate -> errors_as_items

A request (requests.py) says which samples make up one micro-batch, by the arithmetic of plan.py:
nothing is split, shuffled or counted here. Stages are top-level picklable callables, because loader
workers are started by forkserver. Legend: B batch, T tokens, S input side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import webdataset as wds
from torch import Tensor

from mmsa.data.batch_requests import EvaluationRequests, Request, Share, TrainRequests
from mmsa.data.decoding import image_views
from mmsa.data.loading.workers import DEFAULT_TIMEOUT_S, LoaderWorkers
from mmsa.data.reader import RawSample, SplitReader
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage, UserError
from mmsa.labels import ClassMap
from mmsa.preprocessing import Preprocessing
from mmsa.process.memory import keep_freed_memory

# {"keys": list of B, "input_ids" (B, T), "attention_mask" (B, T),
#  "images" uint8 (B, 3, S, S), channels_last with and without workers,
#  "labels" (B,), "targets" (B, C) or None, "weights" (B,) 1 or 0,
#  "num_real": rows of weight 1, as a Python number}
Batch = dict[str, Any]

_READ_TOGETHER = 32  # samples


@dataclass
class Fetched:
    """A request with what has been read for it so far.

    Samples are read as they are asked for, and lose their pictures once these are decoded: no more
    than `_READ_TOGETHER` packed pictures are held at a time.
    """

    request: Request
    samples: Iterable[RawSample]
    images: Tensor | None = None  # uint8 (B, 3, S, S), channels_last


@dataclass
class ReadSamples:
    """Let the samples of each request be read out of their tars."""

    reader: SplitReader

    def __call__(self, source: Iterable[Request]) -> Iterator[Fetched]:
        for request in source:
            yield Fetched(request, self._samples(request))

    def _samples(self, request: Request) -> Iterator[RawSample]:
        """A few at a time: turn by turn with decoding, either finds the processor's caches full of
        the other's, and reading takes twice as long."""
        places = list(zip(request.shards.tolist(), request.ordinals.tolist(), strict=True))
        for first in range(0, len(places), _READ_TOGETHER):
            yield from [
                self.reader.read(*place) for place in places[first : first + _READ_TOGETHER]
            ]


@dataclass(frozen=True)
class Augmentation:
    """Settings of the random view of training pictures."""

    seed: int
    min_crop_scale: float
    flip_probability: float


@dataclass
class DecodeImages:
    """JPEG bytes to uint8 (B, 3, S, S), channels_last.

    Without `augmentation`, the evaluation's view.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation | None = None

    def __call__(self, source: Iterable[Fetched]) -> Iterator[Fetched]:
        for fetched in source:
            request, seen = fetched.request, list[RawSample]()
            views = self._views(fetched.samples, request.epoch, seen)
            fetched.images = image_views.stacked(views, len(request.shards), self.preprocessing)
            fetched.samples = seen
            yield fetched

    def _views(
        self, samples: Iterable[RawSample], epoch: int, seen: list[RawSample]
    ) -> Iterator[Tensor]:
        """The views (3, S, S); the samples go to `seen`, without their pictures."""
        for sample in samples:
            seen.append(sample._replace(image=b""))
            yield self._view(sample, epoch)

    def _view(self, sample: RawSample, epoch: int) -> Tensor:
        try:
            picture = image_views.decode(sample.image)
        except ValueError as error:
            raise ShardDamage(
                f"the picture of {sample.key} in {sample.shard} does not decode ({error}). "
                "Pack the data again",
                shard=sample.shard,
                key=sample.key,
            ) from None
        if self.augmentation is None:
            return image_views.evaluation_view(picture, self.preprocessing)
        return image_views.training_view(
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
            samples, num_real = list(fetched.samples), fetched.request.num_real
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

    Workers start when the object is made: make it before the device is touched. It is never passed
    to `Accelerator.prepare`, which would split the batches among ranks again. `next` raises the
    `UserError` of the stage that met it, and one where a worker was killed or hangs.
    """

    requests: TrainRequests | EvaluationRequests
    preprocessing: Preprocessing  # without image settings, pictures are not decoded
    tokenizer: TextTokenizer | None  # None: texts are not tokenized
    num_workers: int
    augmentation: Augmentation | None = None
    pin_memory: bool = False
    soft_classes: ClassMap | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S  # for a batch of a worker; 0 waits for ever
    worker_pids: list[int] = field(init=False, repr=False, default_factory=list)
    _iterator: Iterator[Batch | Failure] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keep_freed_memory()
        if self.num_workers:
            shares = range(self.num_workers)
            pipelines = [self._pipeline(number, self.num_workers) for number in shares]
            workers = LoaderWorkers(pipelines, rank=self.requests.rank, timeout_s=self.timeout_s)
            self.worker_pids = workers.pids
            self._iterator = workers
        else:
            self._iterator = iter(self._pipeline(0, 1))
        if self.pin_memory:
            self._iterator = pinned_ahead(self._iterator)

    def _pipeline(self, worker: int, num_workers: int) -> wds.DataPipeline:
        stages: list[Any] = [Share(self.requests, worker, num_workers)]
        stages.append(ReadSamples(self.requests.reader))
        if self.preprocessing.image is not None:
            stages.append(DecodeImages(self.preprocessing, self.augmentation))
        stages.append(Collate(self.tokenizer, self.soft_classes))
        return wds.DataPipeline(*stages, errors_as_items)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = next(self._iterator)
        if isinstance(item, Failure):
            raise item.error
        return item


def pinned_ahead(source: Iterator[Batch | Failure]) -> Iterator[Batch | Failure]:
    """`source` with its tensors in pinned memory, one item ahead, by a thread.

    The thread starts with the first item, so that making a loader does not touch the device.
    """

    def pinned() -> Batch | Failure | None:
        item = next(source, None)
        if not isinstance(item, dict):
            return item
        return {
            name: value.pin_memory() if isinstance(value, Tensor) else value
            for name, value in item.items()
        }

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(pinned)
        while (item := coming.result()) is not None:
            coming = thread.submit(pinned)
            yield item
