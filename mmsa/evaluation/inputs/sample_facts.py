"""What the shards say about each evaluated sample in addition to the model's inputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.errors import UserError


@dataclass(frozen=True)
class SampleFacts:
    """One sample. `group` is its duplicate group; sizes are of the packed image, in pixels.

    Without a text `text` is empty, without an image the sizes are 0.
    """

    key: str
    place: tuple[int, int]  # shard and ordinal, to read its image again
    key_hash: int
    text: str
    group: int
    text_label: str | None
    image_label: str | None
    width: int
    height: int
    has_text: bool = True
    has_image: bool = True


def read_facts(reader: SplitReader) -> list[SampleFacts]:
    """The facts of every sample of the split, sorted by key; reads each sample once.

    Raises `ShardDamage` as the reader does.
    """
    places, records = reader.all_records()
    facts = []
    for place, group in zip(places.tolist(), records["group"].tolist(), strict=True):
        sample = reader.read(*place)
        width, height = _size(sample)
        facts.append(
            SampleFacts(
                key=sample.key,
                place=(place[0], place[1]),
                key_hash=sample.key_hash,
                text=sample.text,
                group=group,
                text_label=_name(sample, "text_label"),
                image_label=_name(sample, "image_label"),
                width=width,
                height=height,
                has_text=sample.has_text,
                has_image=sample.has_image,
            )
        )
    return sorted(facts, key=lambda sample: sample.key)


def check_keys(facts: Sequence[SampleFacts], keys: Sequence[str]) -> None:
    """Raise `UserError` unless `facts` belong to `keys`, in the same order."""
    if [sample.key for sample in facts] != list(keys):
        raise UserError(
            f"the {len(facts)} samples in the shards are not the {len(keys)} predicted ones; were "
            "the shards repacked during the evaluation?"
        )


def groups_of(facts: Sequence[SampleFacts]) -> NDArray[np.uint64]:
    """The duplicate group of each sample, (N,)."""
    return np.array([sample.group for sample in facts], dtype=np.uint64)


def _name(sample: RawSample, field: str) -> str | None:
    value = sample.meta.get(field)
    return value if isinstance(value, str) else None


def _size(sample: RawSample) -> tuple[int, int]:
    """Width and height as packing wrote them, else from the image header (tars of other tools)."""
    if not sample.has_image:
        return 0, 0
    width, height = sample.meta.get("width"), sample.meta.get("height")
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    from PIL import Image, UnidentifiedImageError

    from mmsa.data.decoding.posted_images import FORMATS, size_as_shown

    try:
        with Image.open(io.BytesIO(sample.image), formats=FORMATS) as image:
            return size_as_shown(image)
    except (UnidentifiedImageError, OSError):
        return 0, 0  # a text-only model; any other has failed on this image already
