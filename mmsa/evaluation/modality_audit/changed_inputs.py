"""The samples of a split with one modality taken away or exchanged, as a model would meet them.

Made where samples are read: everything behind (decoding, tokenizing, batches) is that of ordinary
evaluation. Exchanges depend on the keys alone, so any number of ranks and workers sees the same.
"""

from __future__ import annotations

import io
import os
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from mmsa.data.manifest import Manifest
from mmsa.data.reader import RawSample, SplitReader
from mmsa.hashed_random import mix64
from mmsa.labels import ClassMap

_SIDE_PX = 32


class Change(StrEnum):
    """What is done to every sample; the values are the words of reports."""

    TEXT_ONLY = "text only (picture masked)"
    IMAGE_ONLY = "picture only (text masked)"
    SHUFFLED_IMAGES = "pictures shuffled"
    SHUFFLED_TEXTS = "texts shuffled"
    SHUFFLED_BOTH = "both shuffled"


class ChangedReader(SplitReader):
    """Reads the samples of a split with `change`; `mean` is that of the pictures, in 0..1.

    A masked picture is one plain colour, the mean that the image encoder subtracts: its input is
    zero. A masked text is empty: the tokenizer's special tokens alone. A shuffled one comes from
    another sample of the split; each is used once, and none stays where it was. Keys and labels
    stay those of the sample.
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
    ) -> None:
        super().__init__(directory, manifest, split, classes)
        self._change = change
        self._plain = plain_image(mean)
        self._partners = _partners(self)

    def read(self, shard: int, ordinal: int) -> RawSample:
        sample = super().read(shard, ordinal)
        change, partners = self._change, self._partners[shard, ordinal]
        if change is Change.TEXT_ONLY:
            return sample._replace(image=self._plain)
        if change is Change.IMAGE_ONLY:
            return sample._replace(text="")
        if change in (Change.SHUFFLED_IMAGES, Change.SHUFFLED_BOTH):
            sample = sample._replace(image=super().read(*partners[0]).image)
        if change in (Change.SHUFFLED_TEXTS, Change.SHUFFLED_BOTH):
            sample = sample._replace(text=super().read(*partners[1]).text)
        return sample


def plain_image(mean: tuple[float, float, float]) -> bytes:
    """A picture of one colour, `mean` of values in 0..1, without loss."""
    colour = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    buffer = io.BytesIO()
    Image.new("RGB", (_SIDE_PX, _SIDE_PX), colour).save(buffer, "PNG")
    return buffer.getvalue()


def _partners(reader: SplitReader) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Place -> the places whose picture and whose text it gets.

    In a ring of all samples, ordered by a hash of their keys, the next one gives the picture and
    the one before gives the text: three samples that belong together nowhere are put together.
    """
    places, records = reader.all_records()
    hashed: np.ndarray[Any, np.dtype[np.uint64]] = mix64(records["key_hash"])
    ring = [(shard, row) for shard, row in places[np.argsort(hashed, kind="stable")].tolist()]
    count = len(ring)
    return {
        place: [ring[(at + 1) % count], ring[(at - 1) % count]] for at, place in enumerate(ring)
    }
