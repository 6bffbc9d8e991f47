"""What the shards say of each evaluated sample besides what a model is given."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmsa.data.reader import RawSample, SplitReader
from mmsa.errors import UserError


@dataclass(frozen=True)
class SampleFacts:
    """One sample. `group` is its duplicate group; sizes are of the packed picture, in pixels."""

    key: str
    place: tuple[int, int]  # shard and ordinal, to read its picture again
    key_hash: int
    text: str
    group: int
    text_label: str | None
    image_label: str | None
    width: int
    height: int


def read_facts(reader: SplitReader) -> list[SampleFacts]:
    """The facts of every sample of the split, sorted by key; reads each sample once.

    Raises `ShardDamage` as the reader does.
    """
    places, records = reader.all_records()
    found = []
    for place, group in zip(places.tolist(), records["group"].tolist(), strict=True):
        sample = reader.read(*place)
        width, height = _size(sample)
        found.append(
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
            )
        )
    return sorted(found, key=lambda facts: facts.key)


def check_keys(facts: Sequence[SampleFacts], keys: Sequence[str]) -> None:
    """Raise `UserError` unless `facts` are those of `keys`, in their order."""
    if [one.key for one in facts] != list(keys):
        raise UserError(
            f"the shards hold {len(facts)} samples that are not the {len(keys)} predicted ones; "
            "were they packed again meanwhile?"
        )


def groups_of(facts: Sequence[SampleFacts]) -> NDArray[np.uint64]:
    """The duplicate group of each sample, (N,)."""
    return np.array([one.group for one in facts], dtype=np.uint64)


def _name(sample: RawSample, field: str) -> str | None:
    value = sample.meta.get(field)
    return value if isinstance(value, str) else None


def _size(sample: RawSample) -> tuple[int, int]:
    """Width and height as packing wrote them, else from the picture's header (tars of others)."""
    width, height = sample.meta.get("width"), sample.meta.get("height")
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(sample.image)) as picture:
            return picture.size
    except (UnidentifiedImageError, OSError):
        return 0, 0  # the model never reads pictures, or prediction has told of this one
