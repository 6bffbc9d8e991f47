"""The first half of packing: pictures brought into packed form, a chunk of examples at a time.

Which pictures are usable must be known before anything is split, and decoding is nearly all of
packing's cost. So each is decoded and encoded once, by any process, and its bytes wait in a chunk:

    chunk-000012.bin    the pictures of up to 128 examples, one after the other
    chunk-000012.json   what is known of each, what was rejected, and the digest of the .bin

A chunk depends on its examples and settings alone; its `fingerprint` is the sha256 of both. One
that is there already, whole and of the same fingerprint, is used again. No pickle: a chunk may come
from another machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmsa.atomic_write import write_file
from mmsa.data.decoding.packed_form import BadImage, pack_image
from shards.duplicates.groups import image_hash
from shards.example import Example, Reason, Reject, Rejected, image_reason, read_file
from shards.packing.settings import ImageForm

CHUNK_EXAMPLES = 128  # about 2.5 MB of pictures, a third of a second of one core


@dataclass(frozen=True, slots=True)
class Encoded:
    """A usable example whose picture waits in a chunk. Sizes in bytes and pixels."""

    key: str
    source_id: str
    dataset: str
    text: str
    label: str
    text_label: str | None
    image_label: str | None
    width: int
    height: int
    offset: int
    length: int
    crc32: int  # of the picture
    image_hash: str  # hexadecimal
    extra: dict[str, Any] = field(default_factory=dict)  # further fields of KEY.json


@dataclass(frozen=True)
class ChunkTask:
    """Examples (and what the source rejected between them, in order) to be made into a chunk."""

    directory: str
    number: int
    items: Sequence[Example | Rejected]
    form: ImageForm
    fingerprint: str


@dataclass(frozen=True)
class Chunk:
    """A finished chunk: where its pictures are, and what is in it. `reused`: it was there."""

    path: str
    samples: list[Encoded]
    rejected: list[Rejected]
    reused: bool = False

    @property
    def num_items(self) -> int:
        return len(self.samples) + len(self.rejected)


def codec_versions() -> dict[str, str]:
    """The libraries that decode, reduce and encode pictures: others may give other bytes."""
    from importlib.metadata import version  # not the modules: torch takes seconds to import

    from PIL import features

    return {
        "simplejpeg": version("simplejpeg"),
        "pillow": version("pillow"),
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg") or "",
        "libwebp": features.version_module("webp") or "",
        "zlib": features.version_codec("zlib") or "",
        "torch": version("torch").partition("+")[0],
        "imagehash": version("imagehash"),  # these two decide which pictures are twins
        "scipy": version("scipy"),
    }


def fingerprint(items: Sequence[Example | Rejected], settings: str) -> str:
    """sha256 of the examples, the size and time of their picture files, and `settings`."""
    digest = hashlib.sha256(settings.encode())
    for item in items:
        digest.update(repr(item).encode("utf-8", "backslashreplace"))
        if isinstance(item, Example):
            try:
                status = os.stat(item.image_path)
                digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            except (OSError, ValueError):
                digest.update(b"none")
    return digest.hexdigest()


def make_chunk(task: ChunkTask) -> Chunk:
    """Encode the examples of `task`, or use the chunk that is there already."""
    there = read_chunk(Path(task.directory), task.number, task.fingerprint)
    if there is not None:
        return there
    pictures, samples, rejected = io.BytesIO(), [], []
    for item in task.items:
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        try:
            samples.append(_encode(item, task.form, pictures))
        except Reject as reject:
            rejected.append(Rejected(item.source_id, reject.reason, reject.detail))
    path = chunk_path(Path(task.directory), task.number)
    content = pictures.getvalue()
    _write(path, content)
    facts = {
        "fingerprint": task.fingerprint,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "samples": [asdict(sample) for sample in samples],
        "rejected": [asdict(item) for item in rejected],
    }
    # Last: a chunk without its .json does not exist.
    _write(path.with_suffix(".json"), json.dumps(facts).encode("ascii"))
    return Chunk(str(path), samples, rejected)


def read_chunk(directory: Path, number: int, expected: str | None) -> Chunk | None:
    """The chunk that is there, checked to the last byte; None where it is not what is expected.

    `expected` is its fingerprint; None takes any.
    """
    path = chunk_path(directory, number)
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        if expected is not None and facts["fingerprint"] != expected:
            return None
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return None
        samples = [Encoded(**sample) for sample in facts["samples"]]
        rejected = [
            Rejected(item["source_id"], Reason(item["reason"]), item["detail"])
            for item in facts["rejected"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Chunk(str(path), samples, rejected, reused=True)


def chunk_path(directory: Path, number: int) -> Path:
    """The file of the pictures of chunk `number`, counted from 0 over the whole raw data."""
    return directory / f"chunk-{number:06d}.bin"


def _write(path: Path, content: bytes) -> None:
    write_file(path, content, durable=False)


def _encode(example: Example, form: ImageForm, pictures: io.BytesIO) -> Encoded:
    content = read_file(
        example.image_path, missing=Reason.NO_IMAGE, unreadable=Reason.UNREADABLE_IMAGE
    )
    try:
        packed = pack_image(
            content,
            short_side_px=form.side_px,
            quality=form.quality,
            mode=form.mode,
            max_pixels=form.max_pixels,
        )
    except BadImage as error:
        raise Reject(image_reason(error), f"{example.image_path.name}: {error}") from None
    except OSError as error:  # the file is read: this is the codec's
        raise Reject(Reason.UNREADABLE_IMAGE, f"{example.image_path.name}: {error}") from None
    extra = {"votes": example.votes, "soft_label": example.soft}
    return Encoded(
        key=example.key,
        source_id=example.source_id,
        dataset=example.dataset,
        text=example.text,
        label=example.label,
        text_label=example.text_label,
        image_label=example.image_label,
        width=packed.width,
        height=packed.height,
        offset=pictures.tell(),
        length=pictures.write(packed.jpeg),
        crc32=zlib.crc32(packed.jpeg),
        image_hash=image_hash(packed.to_pillow()).hex(),
        extra={name: value for name, value in extra.items() if value is not None},
    )
