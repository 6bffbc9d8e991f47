"""A stage of the stream: from the samples of a request to their texts and uint8 views.

Legend: B batch, S input side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from mmsa.data.batch_requests import Request
from mmsa.data.decoding import image_views
from mmsa.data.decoding.auto_augment import AutoAugment, auto_augmented
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.errors import ShardDamage
from mmsa.preprocessing import Preprocessing

_READ_AHEAD = 32  # samples


@dataclass
class ReadBatch:
    """The samples of a request. Their `image` is empty once `images` holds what it shows."""

    request: Request
    samples: list[RawSample]
    images: Tensor | None  # uint8 (B, 3, S, S), channels_last; None if images are not decoded


@dataclass(frozen=True)
class Augmentation:
    """Settings of the random view of training images.

    Without `crop_and_flip` the policy `auto` changes the evaluation's view.
    """

    seed: int
    min_crop_scale: float
    flip_probability: float
    crop_and_flip: bool = True
    auto: AutoAugment | None = None


@dataclass
class ReadAndDecode:
    """Read the samples of each request from their tars and decode their JPEGs.

    Without `augmentation`, images get the evaluation's view. Preprocessing without image settings
    decodes none. A sample without an image gets the view of another one of its request: its
    features do not count, and a BatchNorm in training then sees real images alone. Where the
    request has no image at all, the views are black.
    """

    reader: SplitReader
    preprocessing: Preprocessing
    augmentation: Augmentation | None = None

    def __call__(self, source: Iterable[Request]) -> Iterator[ReadBatch]:
        for request in source:
            samples, images = [], None
            if self.preprocessing.image is not None:
                images = image_views.empty_batch(len(request.shards), self.preprocessing)
            for row, sample in enumerate(self._read(request)):
                if images is not None and sample.has_image:
                    images[row].copy_(self._view(sample, request.epoch))
                    sample = sample._replace(image=b"")  # frees the packed image
                samples.append(sample)
            if images is not None:
                _fill_rows_without_image(images, samples)
            yield ReadBatch(request, samples, images)

    def _read(self, request: Request) -> Iterator[RawSample]:
        """The samples, read `_READ_AHEAD` at a time.

        Alternating read and decode per sample thrashes the CPU cache: reads take twice as long.
        Reading the whole batch first would hold all its packed images in memory.
        """
        places = list(zip(request.shards.tolist(), request.ordinals.tolist(), strict=True))
        for first in range(0, len(places), _READ_AHEAD):
            yield from self.reader.read_all(places[first : first + _READ_AHEAD])

    def _view(self, sample: RawSample, epoch: int) -> Tensor:
        """The view (3, S, S) of a sample's image. Raises `ShardDamage` if it does not decode."""
        try:
            image = image_views.decode(sample.image)
        except ValueError as error:
            raise ShardDamage(
                f"the image of {sample.key} in {sample.shard} does not decode ({error}). "
                f"To go on, {self.reader.remedy}",
                shard=sample.shard,
                key=sample.key,
            ) from None
        if self.augmentation is None:
            return image_views.evaluation_view(image, self.preprocessing)
        return self._augmented(image, sample.key_hash, epoch, self.augmentation)

    def _augmented(self, image: Tensor, sample: int, epoch: int, settings: Augmentation) -> Tensor:
        drawn_by: dict[str, int] = {"seed": settings.seed, "epoch": epoch, "sample": sample}
        if settings.crop_and_flip:
            view = image_views.training_view(
                image,
                self.preprocessing,
                **drawn_by,
                min_crop_scale=settings.min_crop_scale,
                flip_probability=settings.flip_probability,
            )
        else:
            view = image_views.evaluation_view(image, self.preprocessing)
        if settings.auto is None:
            return view
        assert self.preprocessing.image is not None
        return auto_augmented(view, settings.auto, **drawn_by, fill=self.preprocessing.image.mean)


def _fill_rows_without_image(images: Tensor, samples: Sequence[RawSample]) -> None:
    """Give the rows of samples without an image the views of the others, in turn; black if none."""
    rows = [row for row, sample in enumerate(samples) if sample.has_image]
    lacking = [row for row, sample in enumerate(samples) if not sample.has_image]
    for number, row in enumerate(lacking):
        if rows:
            images[row].copy_(images[rows[number % len(rows)]])
        else:
            images[row].zero_()
