"""The first half of packing: images are brought into packed form, a chunk of examples at a time.

Packing must know which images are usable before it splits anything, and decoding is nearly all of
its cost. So any process decodes and encodes each image once, and the result waits in a chunk:

    chunk-000012.bin    the JPEGs of up to 128 examples, one after the other
    chunk-000012.json   the `EncodedSample`s, what was rejected, and the sha256 of the .bin

A chunk depends on its examples and settings alone; its `fingerprint` is the sha256 of both. An
existing chunk with the same fingerprint is checked and used again. No pickle: a chunk may come from
another machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmsa.data.decoding.packed_form import BadImage, PackedImage, pack_image
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json
from shards.duplicates.images import image_hash
from shards.example import (
    EncodedSample,
    Example,
    Reason,
    Reject,
    Rejected,
    image_reason,
    read_file,
)
from shards.packing.settings import ImageForm

CHUNK_EXAMPLES = 128  # about 2.5 MB of JPEGs, a third of a second on one core


@dataclass(frozen=True)
class ChunkTask:
    """The examples of one chunk, with what the source rejected between them, in order."""

    directory: str
    number: int
    items: Sequence[Example | Rejected]
    form: ImageForm
    fingerprint: str


@dataclass(frozen=True)
class Chunk:
    """The content of a finished chunk, without its images."""

    samples: list[EncodedSample]
    rejected: list[Rejected]

    @property
    def num_items(self) -> int:
        return len(self.samples) + len(self.rejected)


def codec_versions() -> dict[str, str]:
    """The libraries that decode, resize and encode images: other versions may give other bytes."""
    from importlib.metadata import version  # not the modules: torch takes seconds to import

    from PIL import features

    return {
        "simplejpeg": version("simplejpeg"),
        "pillow": version("pillow"),
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg") or "",
        "libwebp": features.version_module("webp") or "",
        "zlib": features.version_codec("zlib") or "",
        "torch": version("torch").partition("+")[0],
        "imagehash": version("imagehash"),  # these two decide which images are duplicates
        "scipy": version("scipy"),
    }


def fingerprint(items: Sequence[Example | Rejected], settings: str) -> str:
    """sha256 of the examples, the size and time of their image files, and `settings`."""
    digest = hashlib.sha256(settings.encode())
    for item in items:
        digest.update(repr(item).encode("utf-8", "backslashreplace"))
        if isinstance(item, Example) and item.image_path is not None:
            try:
                status = os.stat(item.image_path)
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            except (OSError, ValueError):
                digest.update(b"none")
    return digest.hexdigest()


def make_chunk(task: ChunkTask) -> Chunk:
    """Encode the examples of `task`, or use the chunk that an earlier packing finished."""
    finished = read_chunk(Path(task.directory), task.number, task.fingerprint)
    if finished is not None:
        return finished
    path = chunk_path(Path(task.directory), task.number)
    images, samples, rejected = io.BytesIO(), [], []
    for item in task.items:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        if item.image_path is None:
            samples.append(EncodedSample(item, str(path), 0, 0, 0, 0, 0, image_hash=""))
            continue
        try:
            packed = _packed_image(item.image_path, task.form)
        except Reject as reject:
            rejected.append(reject.of(item.source_id))
            continue
        sample = EncodedSample(
            example=item,
            chunk=str(path),
            offset=images.tell(),
            length=images.write(packed.jpeg),
            crc32=zlib.crc32(packed.jpeg),
            width=packed.width,
            height=packed.height,
            image_hash=image_hash(packed.to_pillow()).hex(),
        )
        samples.append(sample)
    content = images.getvalue()
    write_file(path, content, durable=False)
    facts = {
        "fingerprint": task.fingerprint,
        "sha256": hashlib.sha256(content).hexdigest(),
        "samples": [asdict(sample) for sample in samples],
        "rejected": [asdict(item) for item in rejected],
    }
    # Last: a chunk without its .json does not exist. `default` is for paths.
    write_file(path.with_suffix(".json"), json.dumps(facts, default=str), durable=False)
    return Chunk(samples, rejected)


def _packed_image(path: Path, form: ImageForm) -> PackedImage:
    """The image at `path` in packed form. Raises `Reject` where it is not usable."""
    content = read_file(path, missing=Reason.NO_IMAGE, unreadable=Reason.UNREADABLE_IMAGE)
    try:
        return pack_image(
            content,
            short_side_px=form.side_px,
            quality=form.quality,
            mode=form.mode,
            max_pixels=form.max_pixels,
        )
    except BadImage as error:
        raise Reject(image_reason(error), f"{path.name}: {error}") from None
    except OSError as error:  # from the codec: the file has been read
        raise Reject(Reason.UNREADABLE_IMAGE, f"{path.name}: {error}") from None


def read_chunk(directory: Path, number: int, expected: str | None) -> Chunk | None:
    """Read a finished chunk and check its images' sha256; None where it is missing or damaged.

    Also None where its fingerprint is not `expected`, unless that is None.
    """
    path = chunk_path(directory, number)
    try:
        facts = parse_json(path.with_suffix(".json").read_bytes())
        if expected is not None and facts["fingerprint"] != expected:
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return None
        samples = [_sample_from_json(sample, path) for sample in facts["samples"]]
        rejected = [
            Rejected(**{**item, "reason": Reason(item["reason"])}) for item in facts["rejected"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Chunk(samples, rejected)


def _sample_from_json(sample: dict[str, Any], chunk: Path) -> EncodedSample:
    """`sample` as `asdict` gave it; `chunk` replaces its path, which changes when a part moves."""
    example = sample["example"]
    for name in ("dataset", "label", "text_label", "image_label", "split"):
        if example[name] is not None:
            example[name] = sys.intern(example[name])  # the same few words in a million samples
    votes = example["votes"]
    example["votes"] = None if votes is None else tuple((text, image) for text, image in votes)
    if example["image_path"] is not None:
        example["image_path"] = Path(example["image_path"])
    return EncodedSample(**{**sample, "example": Example(**example), "chunk": str(chunk)})


def chunk_path(directory: Path, number: int) -> Path:
    """The file of the images of chunk `number`, counted from 0 over the whole raw data."""
    return directory / f"chunk-{number:06d}.bin"
