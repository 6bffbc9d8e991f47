"""Read an existing tar sample by sample and check what it must contain.

The error names the first sample that does not fit, its content and what was expected.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mmsa.data.decoding.file_kinds import ACCEPTED_NAMES, accepted_format, described
from mmsa.data.decoding.limits import MAX_CHARACTERS, MOST_PIXELS_IN_SHARDS
from mmsa.data.index_file import missing_bits
from mmsa.data.manifest import MODALITIES
from mmsa.data.members import (
    Fields,
    field_text,
    key_and_field,
    object_in,
    sample_of,
    tar_members,
)
from mmsa.errors import UserError
from mmsa.foundation.regular_file import open_regular
from shards.class_names import stated_class, unknown
from shards.example import Reason, Reject, Rejected, image_reason
from shards.splits.by_hash import SPLITS
from shards.tar_extents import extents

_SHOWN = 20  # names in a message
_DEFAULT_SPLITS = tuple((name, f"*{name}*.tar") for name in SPLITS)
IMAGE_FIELDS = "jpg,jpeg,png,webp,gif,bmp"
# Of the same default; a manifest lists them where a sample has one.
LATER_IMAGE_FIELDS = ("avif", "tif", "tiff")


@dataclass(frozen=True)
class IndexSettings:
    """Settings of `index`. `labels` are names as in `Fields`; `splits` are (name, pattern).

    With `decode` each image is decoded, as training will do it. With `skip_bad` samples that do not
    fit are left out.
    """

    fields: Fields
    labels: tuple[str, ...]
    classes: tuple[str, ...] | None
    splits: tuple[tuple[str, str], ...] = _DEFAULT_SPLITS
    dataset: str | None = None
    decode: bool = True
    max_characters: int = MAX_CHARACTERS
    skip_bad: bool = False

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
        keep_missing = names(options.keep_missing or "")
        if not set(keep_missing) <= set(MODALITIES):
            raise UserError(
                f"--keep-missing {options.keep_missing} must be text, image, or text,image"
            )
        image = names(options.image_field)
        if options.image_field == IMAGE_FIELDS:
            image += LATER_IMAGE_FIELDS
        return cls(
            Fields(image, names(options.text_field), frozenset(keep_missing)),
            names(options.label_field),
            None if options.classes is None else names(options.classes),
            tuple(splits) or _DEFAULT_SPLITS,
            options.dataset,
            not options.no_decode,
            options.max_characters,
            options.skip_bad,
        )


@dataclass(frozen=True)
class ScanTask:
    """One tar to be read."""

    path: str
    settings: IndexSettings


@dataclass(frozen=True)
class TarContents:
    """The content of one tar: per sample its place, key and label.

    A place is (offset, length, crc32, characters, missing) as in the index. `image_fields` are
    those that its samples have, `rejected` the samples that were left out, and `warnings` sentences
    on the end of the tar.
    """

    places: list[tuple[int, int, int, int, int]]
    keys: list[str]
    labels: list[str]
    tar_bytes: int
    tar_sha256: str
    image_fields: frozenset[str]
    rejected: list[Rejected]
    warnings: list[str]

    def without(self, left_out: Mapping[int, Rejected]) -> TarContents:
        """The same without the samples whose numbers are in `left_out`."""
        kept = [number for number in range(len(self.keys)) if number not in left_out]
        return replace(
            self,
            places=[self.places[number] for number in kept],
            keys=[self.keys[number] for number in kept],
            labels=[self.labels[number] for number in kept],
            rejected=[*self.rejected, *left_out.values()],
        )


@dataclass(frozen=True)
class _Sample:
    key: str
    text: str | None
    label: str
    image_field: str | None  # None: it has no image


def scan_tar(task: ScanTask) -> TarContents:
    """Read every sample of one tar. Raises `UserError` naming the first that does not fit, unless
    such samples are left out and others fit."""
    path = Path(task.path)
    places: list[tuple[int, int, int, int, int]] = []
    samples: list[_Sample] = []
    rejected: list[Rejected] = []
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found = extents(path)
            for number, (start, stop) in enumerate(found.samples):
                file.seek(start)
                piece = file.read(stop - start)
                try:
                    sample = _fitting(piece, task.settings)
                except Reject as reject:
                    if not task.settings.skip_bad:
                        raise UserError(_does_not_fit(path, number, reject.detail)) from None
                    name = f"{path.name}:{number}"
                    rejected.append(reject.of(name))
                    continue
                lacks = missing_bits(
                    has_text=sample.text is not None, has_image=sample.image_field is not None
                )
                characters = len(sample.text or "")
                places.append((start, stop - start, zlib.crc32(piece), characters, lacks))
                samples.append(sample)
    except tarfile.TarError as error:
        raise UserError(f"{path} is not a readable, uncompressed tar ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if rejected and not samples:
        raise UserError(
            f"{path}: none of its {len(rejected):,} samples fits; the first: {rejected[0].detail}"
        )
    return TarContents(
        places,
        [sample.key for sample in samples],
        [sample.label for sample in samples],
        path.stat().st_size,
        digest,
        frozenset(name for name in (sample.image_field for sample in samples) if name),
        rejected,
        found.warnings,
    )


def _does_not_fit(path: Path, number: int, detail: str) -> str:
    return f"{path}: sample {number} does not fit: {detail}. --skip-bad leaves such samples out"


def _fitting(piece: bytes, settings: IndexSettings) -> _Sample:
    """One sample. Raises `Reject` where it is not as expected."""
    try:
        members = tar_members(piece)
        key, image, text, json = sample_of(members, settings.fields)
        object_in(json)  # raises where it is not readable
        key.encode("utf-8")  # raises where the index could not have its hash
    except (ValueError, tarfile.TarError) as error:
        hint = (
            "Fields are named with --image-field and --text-field; --keep-missing keeps samples "
            "without an image or a text"
        )
        raise Reject(Reason.SAMPLE, f"{error}. {hint}") from None
    if image is not None and accepted_format(image) is None:
        found = f"the image of '{key}' is {described(image)}; accepted are {ACCEPTED_NAMES}"
        raise Reject(Reason.UNREADABLE_IMAGE, found)
    if settings.decode and image is not None:
        _decode(key, image)
    if text is not None and not text.strip():
        raise Reject(Reason.EMPTY_TEXT, f"the text of '{key}' is empty")
    if text is not None and len(text) > settings.max_characters:
        raise Reject(
            Reason.LARGE_TEXT,
            f"the text of '{key}' has {len(text):,} characters; --max-characters is "
            f"{settings.max_characters:,}",
        )
    named = [(key_and_field(name), data) for name, data in members]
    by_field = {both[1]: data for both, data in named if both is not None}
    try:
        label = _label(by_field, settings.labels)
    except ValueError as error:
        raise Reject(Reason.SAMPLE, f"the class of '{key}' cannot be read ({error})") from None
    if label is None:
        raise Reject(
            Reason.NO_LABEL,
            f"'{key}' has the members {sorted(by_field)[:_SHOWN]} and no class "
            f"({', '.join(settings.labels)}); name it with --label-field",
        )
    classes = settings.classes
    if classes is not None:
        name = stated_class(label, classes)
        if name is None:
            said = unknown(label, classes, hint=False)
            raise Reject(Reason.UNKNOWN_LABEL, f"'{key}' has the class {said}")
        label = name
    return _Sample(
        key, text, label, next((n for n in settings.fields.image if n in by_field), None)
    )


def _decode(key: str, image: bytes) -> None:
    from mmsa.data.decoding.posted_images import BadImage, decode_image  # take time to import

    try:
        decode_image(image, max_pixels=MOST_PIXELS_IN_SHARDS)
    except BadImage as error:
        detail = f"the image of '{key}' does not decode ({error})"
        raise Reject(image_reason(error), detail) from None


def _label(by_field: Mapping[str, bytes], names: tuple[str, ...]) -> str | None:
    for name in names:
        label = field_text(name, by_field)
        stripped = "" if label is None else label.removeprefix("\ufeff").strip()
        if stripped:
            return stripped
    return None
