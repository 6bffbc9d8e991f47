"""The samples of a split with one modality masked or shuffled.

Samples are changed when they are read: decoding, tokenizing and batching are those of ordinary
evaluation. Shuffles depend only on the keys, so they are the same for any number of ranks and
workers.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from mmsa.data.index_file import lacks
from mmsa.data.manifest import Manifest, Modality
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.foundation.hashed_random import mix64
from mmsa.labels import ClassMap

_SIDE_PX = 32

Place = tuple[int, int]  # shard and ordinal


class Change(StrEnum):
    """What is done to every sample; the values are keys of modality_audit.json."""

    TEXT_ONLY = "text only (picture masked)"
    IMAGE_ONLY = "picture only (text masked)"
    SHUFFLED_IMAGES = "pictures shuffled"
    SHUFFLED_TEXTS = "texts shuffled"
    SHUFFLED_BOTH = "both shuffled"


class ChangedReader(SplitReader):
    """Reads the samples of a split with `change`; `mean` is the image mean, in 0..1.

    A masked image has one colour, the mean that the image encoder subtracts, so its input is zero.
    A masked text is empty: only the tokenizer's special tokens remain. A modality in `may_lack` is
    left out instead: the model has learned what stands in for it. A shuffled image or text
    comes from another sample of the split; each is used once, and none stays where it was. Keys and
    labels do not change. A sample without an image or a text stays without it under every change:
    shuffles exchange images, and texts, among the samples that have one.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        manifest: Manifest,
        split: str,
        classes: ClassMap,
        *,
        change: Change,
        mean: tuple[float, float, float],
        may_lack: Collection[Modality] = (),
    ) -> None:
        super().__init__(directory, manifest, split, classes)
        self._change = change
        self._plain = plain_image(mean)
        self._may_lack = frozenset(may_lack)
        self._image_of = _partners(self, "image", 1)
        self._text_of = _partners(self, "text", -1)

    def read(self, shard: int, ordinal: int) -> RawSample:
        sample = super().read(shard, ordinal)
        change, place = self._change, (shard, ordinal)
        if change is Change.TEXT_ONLY and sample.has_image:
            left_out = "image" in self._may_lack
            masked = b"" if left_out else self._plain
            return sample._replace(image=masked, has_image=not left_out)
        if change is Change.IMAGE_ONLY and sample.has_text:
            return sample._replace(text="", has_text="text" not in self._may_lack)
        if change in (Change.SHUFFLED_IMAGES, Change.SHUFFLED_BOTH) and sample.has_image:
            sample = sample._replace(image=super().read(*self._image_of[place]).image)
        if change in (Change.SHUFFLED_TEXTS, Change.SHUFFLED_BOTH) and sample.has_text:
            sample = sample._replace(text=super().read(*self._text_of[place]).text)
        return sample


def plain_image(mean: tuple[float, float, float]) -> bytes:
    """A lossless image of one colour, `mean` in 0..1."""
    colour = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    buffer = io.BytesIO()
    Image.new("RGB", (_SIDE_PX, _SIDE_PX), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _partners(reader: SplitReader, modality: Modality, step: int) -> dict[Place, Place]:
    """Place -> the place whose image or text it gets, for all samples that have one.

    They form a ring, ordered by a hash of their keys. With a `step` of 1 for images and of -1 for
    texts, each takes the image of the next one and the text of the one before, so image, text and
    label come from three samples where all have both modalities.
    """
    places, records = reader.all_records()
    hashed: np.ndarray[Any, np.dtype[np.uint64]] = mix64(records["key_hash"])
    order = np.argsort(hashed, kind="stable")
    order = order[~lacks(records[order], modality)]
    ring = [(shard, row) for shard, row in places[order].tolist()]
    return {place: ring[(at + step) % len(ring)] for at, place in enumerate(ring)}
