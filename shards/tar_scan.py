"""Read an existing tar sample by sample and check what it must contain.

The error names the first sample that does not fit, its content and what was expected.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmsa.data.decoding.limits import MAX_CHARACTERS, MOST_PIXELS_IN_SHARDS
from mmsa.data.members import Fields, field_text, object_in, sample_of, tar_members
from mmsa.errors import UserError
from mmsa.foundation.regular_file import open_regular
from shards.class_names import stated_class, unknown
from shards.splits.by_hash import SPLITS

_DEFAULT_SPLITS = tuple((name, f"*{name}*.tar") for name in SPLITS)
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM")


@dataclass(frozen=True)
class IndexSettings:
    """Settings of `index`. `labels` are names as in `Fields`; `splits` are (name, pattern).

    With `decode` each image is decoded, as training will do it.
    """

    fields: Fields
    labels: tuple[str, ...]
    classes: tuple[str, ...] | None
    splits: tuple[tuple[str, str], ...] = _DEFAULT_SPLITS
    dataset: str | None = None
    decode: bool = True
    max_characters: int = MAX_CHARACTERS

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> IndexSettings:
        """Read the options of `python -m shards index`; `UserError` for a wrong --split."""

        def names(text: str) -> tuple[str, ...]:
            return tuple(name.strip() for name in text.split(",") if name.strip())

        splits = []
        for text in options.split or ():
            name, _, pattern = text.partition("=")
            if name not in SPLITS or not pattern:
                raise UserError(
                    f"--split {text} must be NAME=PATTERN, NAME one of {', '.join(SPLITS)}, as in "
                    "train=shard-00*.tar"
                )
            splits.append((name, pattern))
        if options.max_characters < 1:
            raise UserError(f"--max-characters {options.max_characters} must be at least 1")
        return cls(
            Fields(names(options.image_field), names(options.text_field)),
            names(options.label_field),
            None if options.classes is None else names(options.classes),
            tuple(splits) or _DEFAULT_SPLITS,
            options.dataset,
            not options.no_decode,
            options.max_characters,
        )


@dataclass(frozen=True)
class ScanTask:
    """One tar to be read."""

    path: str
    settings: IndexSettings


@dataclass(frozen=True)
class TarContents:
    """The content of one tar: per sample (offset, length, crc32, characters), key and label."""

    places: list[tuple[int, int, int, int]]
    keys: list[str]
    labels: list[str]
    tar_bytes: int
    tar_sha256: str


def scan_tar(task: ScanTask) -> TarContents:
    """Read every sample of one tar. Raises `UserError` naming the first that does not fit."""
    path = Path(task.path)
    places: list[tuple[int, int, int, int]] = []
    keys: list[str] = []
    labels: list[str] = []
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            for start, stop in _extents(path):
                file.seek(start)
                piece = file.read(stop - start)
                try:
                    key, text, label = _fitting(piece, task.settings)
                except ValueError as error:
                    number = len(keys)
                    raise UserError(f"{path}: sample {number} does not fit: {error}") from None
                places.append((start, stop - start, zlib.crc32(piece), len(text)))
                keys.append(key)
                labels.append(label)
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable, uncompressed tar ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    return TarContents(places, keys, labels, path.stat().st_size, digest)


def _extents(path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of each sample: runs of members with the same key."""
    last, start, stop = None, 0, 0
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            folder, slash, base = member.name.rpartition("/")
            key = f"{folder}{slash}{base.partition('.')[0]}"
            if key != last:
                if last is not None:
                    yield start, stop
                last, start = key, member.offset
            stop = member.offset_data + -(-member.size // 512) * 512
    if last is not None:
        yield start, stop


def _fitting(piece: bytes, settings: IndexSettings) -> tuple[str, str, str]:
    """(key, text, label) of one sample. Raises `ValueError` where it is not as expected."""
    members = tar_members(piece)
    try:
        key, image, text, json = sample_of(members, settings.fields)
        object_in(json)  # raises where it is not readable
    except ValueError as error:
        raise ValueError(f"{error}. Fields are named with --image-field and --text-field") from None
    if not image.startswith(_IMAGE_STARTS):
        raise ValueError(f"the image of '{key}' is not a JPEG, PNG, GIF, WebP or BMP")
    if settings.decode:
        _decode(key, image)
    if len(text) > settings.max_characters:
        raise ValueError(
            f"the text of '{key}' has {len(text):,} characters; --max-characters is "
            f"{settings.max_characters:,}"
        )
    by_field = {name.rpartition("/")[2].partition(".")[2].lower(): data for name, data in members}
    label = _label(by_field, settings.labels)
    if label is None:
        raise ValueError(
            f"'{key}' has the members {sorted(by_field)} and no class "
            f"({', '.join(settings.labels)}); name it with --label-field"
        )
    classes = settings.classes
    if classes is not None:
        name = stated_class(label, classes)
        if name is None:
            raise ValueError(f"'{key}' has the class {unknown(label, classes, hint=False)}")
        label = name
    return key, text, label


def _decode(key: str, image: bytes) -> None:
    from mmsa.data.decoding.posted_images import BadImage, decode_image  # take time to import

    try:
        decode_image(image, max_pixels=MOST_PIXELS_IN_SHARDS)
    except BadImage as error:
        raise ValueError(f"the image of '{key}' does not decode ({error})") from None


def _label(by_field: Mapping[str, bytes], names: tuple[str, ...]) -> str | None:
    for name in names:
        label = field_text(name, by_field)
        if label is not None and label.strip():
            return label.strip()
    return None
