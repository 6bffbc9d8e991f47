"""From shards to batches: a flat list of stages, in the order in which a sample passes them.

    Share -> ReadAndDecode -> Collate -> errors_as_items

A request (batch_requests.py) says which samples make up one micro-batch, by the arithmetic of
plan.py: nothing is split, shuffled or counted here. Stages are top-level picklable callables,
because loader workers are started by forkserver. ReadAndDecode is in read_and_decode.py. Legend:
B batch, T tokens, S input side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import webdataset as wds
from torch import Tensor

from mmsa.data.batch_requests import EvaluationRequests, Share, TrainRequests
from mmsa.data.loading.device_copies import CudaCopies, PinnedCopies, copied_ahead
from mmsa.data.loading.workers import DEFAULT_TIMEOUT_S, LoaderWorkers
from mmsa.data.modality_dropout import ModalityDropout, kept_modalities
from mmsa.data.modality_labels import modality_labels
from mmsa.data.packed_texts import TextLayout, in_batch
from mmsa.data.raw_sample import RawSample
from mmsa.data.read_and_decode import Augmentation, ReadAndDecode, ReadBatch
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage, UserError
from mmsa.labels import ClassMap
from mmsa.preprocessing import Preprocessing
from mmsa.process.memory import keep_freed_memory

# {"keys": list of B, "input_ids" (B, T), "attention_mask" (B, T),
#  "packed_ids", "packed_positions", "packed_texts" (P, S), "packed_bounds" (B + P + 1,): the same
#  texts, see PackedTexts, all None where they are not packed,
#  "images" uint8 (B, 3, S, S), channels_last with and without workers,
#  "labels" (B,), "targets" (B, C) or None, "modality_labels" (B, 2) or None: of text and image,
#  "weights" (B,) 1 or 0,
#  "text_present" (B,) bool, "image_present" (B,) bool, each None where all rows have it,
#  "num_real": rows of weight 1, "num_images": rows with an image, as Python numbers}
Batch = dict[str, Any]


@dataclass
class Collate:
    """Tokenize and stack. Without a tokenizer the batch has no token ids.

    A missing text is tokenized as an empty one. `dropout` masks modalities, in training alone.
    `layout` says how token ids lie in the batch.

    With `soft_classes` the batch has `targets` (B, C): the annotators' shares of each class
    (`soft_label` in `key.json`), merged in the same way as the classes and scaled so that the
    kept classes sum to 1. With `modality_classes` it has `modality_labels`, of these classes.
    """

    tokenizer: TextTokenizer | None
    soft_classes: ClassMap | None = None
    modality_classes: ClassMap | None = None
    dropout: ModalityDropout | None = None
    layout: TextLayout = TextLayout()

    def __call__(self, source: Iterable[ReadBatch]) -> Iterator[Batch]:
        for read in source:
            samples, num_real = read.samples, read.request.num_real
            input_ids, attention_mask, packed = None, None, None
            if self.tokenizer is not None:
                texts = [sample.text for sample in samples]
                input_ids, attention_mask, packed = self.layout.tokens_of(self.tokenizer, texts)
            weights = torch.zeros(len(samples))
            weights[:num_real] = 1.0
            epoch = read.request.epoch
            kept = [kept_modalities(sample, self.dropout, epoch) for sample in samples]
            targets = None
            if self.soft_classes is not None:
                targets = torch.stack([self._target(sample) for sample in samples])
            own = None
            if self.modality_classes is not None:
                classes = self.modality_classes
                own = torch.tensor([modality_labels(sample, classes) for sample in samples])
            yield {
                "keys": [sample.key for sample in samples],
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                **in_batch(packed),
                "images": read.images,
                "labels": torch.tensor([sample.label for sample in samples]),
                "targets": targets,
                "modality_labels": own,
                "weights": weights,
                "text_present": _mask([text for text, _ in kept]),
                "image_present": _mask([image for _, image in kept]),
                "num_real": num_real,
                "num_images": sum(sample.has_image for sample in samples),
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


def _mask(present: Sequence[bool]) -> Tensor | None:
    """(B,) bool; None where all are True."""
    return None if all(present) else torch.tensor(present)


@dataclass(frozen=True)
class Failure:
    """A `UserError` on its way from a loader worker, as an item of the stream.

    Workers send other exceptions as text, which loses their type.
    """

    error: UserError


def errors_as_items(source: Iterable[Batch]) -> Iterator[Batch | Failure]:
    """The last stage: end the stream with a `Failure` if a stage raised a `UserError`."""
    try:
        yield from source
    except UserError as error:
        yield Failure(error)


@dataclass
class Loader:
    """Batches from the stages, prepared ahead of their use by `num_workers` processes.

    Workers start in the constructor: create the loader before the device is used. Never pass it to
    `Accelerator.prepare`, which would split the batches among the ranks again. `next` raises the
    `UserError` of the stage where it happened, and one if a worker was killed or hangs.
    """

    requests: TrainRequests | EvaluationRequests
    preprocessing: Preprocessing  # without image settings, images are not decoded
    tokenizer: TextTokenizer | None  # None: texts are not tokenized
    num_workers: int
    augmentation: Augmentation | None = None
    pin_memory: bool = False
    soft_classes: ClassMap | None = None
    modality_classes: ClassMap | None = None
    dropout: ModalityDropout | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S  # to wait for a batch; 0 waits forever
    layout: TextLayout = TextLayout()  # of the model's texts
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
            self._iterator = copied_ahead(self._iterator, PinnedCopies())

    def send_to(self, device: torch.device) -> None:
        """From now on batches are on the GPU `device`, copied one ahead; before the first one.

        Of a loader without `pin_memory`: the copy includes it.
        """
        self._iterator = copied_ahead(self._iterator, CudaCopies(device))

    def _pipeline(self, worker: int, num_workers: int) -> wds.DataPipeline:
        return wds.DataPipeline(
            Share(self.requests, worker, num_workers),
            ReadAndDecode(self.requests.reader, self.preprocessing, self.augmentation),
            Collate(
                self.tokenizer,
                self.soft_classes,
                self.modality_classes,
                self.dropout,
                self.layout,
            ),
            errors_as_items,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        item = next(self._iterator)
        if isinstance(item, Failure):
            raise item.error
        return item
