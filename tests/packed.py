"""Small packed sets with shards of any sizes, written by the project's own packing functions.

`shards.packing.pack` makes shards of nearly equal sizes; the order must also hold for uneven and
empty ones, so the sizes are chosen here and only the writing is the project's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmsa.data.index_file import key_hash
from mmsa.data.manifest import Manifest, ProtocolInfo, SplitInfo, version_of, write_manifest
from mmsa.data.reader import SplitReader
from mmsa.labels import LABEL_NAMES, class_map
from mmsa.preprocessing import ImagePreprocessing, Preprocessing
from shards.packing.tars import PackedSample, write_shard
from shards.packing.write import split_info

SIZES = (7, 0, 12, 1, 5)  # 25 samples of the train split: uneven, one shard empty

PREPROCESSING = Preprocessing(
    image=ImagePreprocessing(image_size_px=24, resize_px=32), max_tokens=12
)


def picture(number: int, *, width: int = 40, height: int = 32) -> bytes:
    """A JPEG with some structure, another one for each `number`."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def text(number: int) -> str:
    """A text of 1 to 9 words; its length has no order in `number`."""
    return " ".join(f"word{(number * 5 + place) % 13}" for place in range(1 + number * 7 % 9))


def sample(number: int, *, split: str = "train", lacks: str = "") -> PackedSample:
    """Sample `number` of a split: its class goes round, its key holds split and number.

    It has no text or no image where `lacks` says "text" or "image".
    """
    key = f"tiny-{split}-{number}"
    return PackedSample(
        key=key,
        label=LABEL_NAMES[number % 3],
        group=key_hash(key),
        text="" if lacks == "text" else text(number),
        image=b"" if lacks == "image" else picture(number),
        facts={"source_id": str(number)},
    )


def write_split(
    directory: Path, split: str, samples: Sequence[Sequence[PackedSample]]
) -> SplitInfo:
    """Write one shard per sequence in `samples`."""
    shards = tuple(
        write_shard(directory, f"{split}-{number:05d}", part, LABEL_NAMES)
        for number, part in enumerate(samples)
    )
    return split_info(shards, LABEL_NAMES)


def seal(directory: Path, splits: dict[str, SplitInfo]) -> Manifest:
    """Write the manifest of `splits`."""
    manifest = Manifest(
        version=version_of(splits),
        dataset="tiny",
        classes=LABEL_NAMES,
        label_rule="as given",
        protocol=ProtocolInfo(name="tiny", version=1, settings={}, hash="0" * 64),
        source={"kept": sum(split.num_samples for split in splits.values())},
        packing={"image_short_side_px": 32, "image_quality": 90},
        splits=splits,
    )
    return write_manifest(directory, manifest)


def packed_set(directory: Path, sizes: Sequence[int] = SIZES, *, split: str = "train") -> Manifest:
    """Pack a set of one split whose shards hold `sizes` samples, numbered through."""
    numbers = iter(range(sum(sizes)))
    parts = [[sample(next(numbers), split=split) for _ in range(size)] for size in sizes]
    return seal(directory, {split: write_split(directory, split, parts)})


def lacking_set(directory: Path, lacks: Sequence[str], *, split: str = "train") -> Manifest:
    """Pack one shard of a split: sample n lacks what `lacks[n]` says, nothing where that is ""."""
    directory.mkdir(exist_ok=True)
    part = [sample(number, split=split, lacks=what) for number, what in enumerate(lacks)]
    return seal(directory, {split: write_split(directory, split, [part])})


def open_split(directory: Path, manifest: Manifest, *, split: str = "train") -> SplitReader:
    """A reader of all classes."""
    return SplitReader(directory, manifest, split, class_map(manifest.classes, None))
