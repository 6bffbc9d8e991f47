"""Index files and a manifest for WebDataset tars that others packed; the tars stay as they are.

Every sample is looked at once: its fields, its class, its key. The first one that does not fit is
named, with what it holds and what was expected.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsa.data.manifest import (
    INDEX_DTYPE,
    MANIFEST_NAME,
    Manifest,
    ProtocolInfo,
    ShardInfo,
    index_bytes,
    key_hash,
    write_manifest,
)
from mmsa.data.members import Fields, field_text, sample_of, tar_members
from mmsa.errors import UserError
from shards.packing.workers import Workers, default_workers
from shards.packing.write import split_info
from shards.progress import Progress
from shards.splits.by_hash import SPLITS
from shards.splits.protocols import protocol_hash

_DEFAULT_SPLITS = tuple((name, f"*{name}*.tar") for name in SPLITS)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM")


@dataclass(frozen=True)
class IndexSettings:
    """What the command line says. `labels` are names as in `Fields`; `splits` (name, pattern)."""

    fields: Fields
    labels: tuple[str, ...]
    classes: tuple[str, ...] | None
    splits: tuple[tuple[str, str], ...] = _DEFAULT_SPLITS
    dataset: str | None = None

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
        return cls(
            Fields(names(options.image_field), names(options.text_field)),
            names(options.label_field),
            None if options.classes is None else names(options.classes),
            tuple(splits) or _DEFAULT_SPLITS,
            options.dataset,
        )


@dataclass(frozen=True)
class _Task:
    path: str
    settings: IndexSettings


@dataclass(frozen=True)
class _Found:
    """One tar as it was found: per sample (offset, length, crc32, characters), key and label."""

    places: list[tuple[int, int, int, int]]
    keys: list[str]
    labels: list[str]
    tar_bytes: int
    tar_sha256: str


def index(
    directory: Path,
    settings: IndexSettings,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Write an index beside each tar of `directory` and its manifest; returns the manifest.

    Raises `UserError` where no tar fits the patterns or one fits two, where a sample does not fit
    the fields, where a key stands twice, and where index files are there already (unless
    `overwrite`). Nothing is written before every sample has been seen.
    """
    tars = _tars_of(directory, settings)
    there = [directory / MANIFEST_NAME, *(tar.with_suffix(".idx") for _, tar in tars)]
    existing = [path for path in there if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} exists already; --overwrite replaces it")
    tasks = [_Task(str(tar), settings) for _, tar in tars]
    found: list[_Found] = []
    count = min(default_workers(), len(tars)) if workers is None else workers
    with (
        Workers(count) as pool,
        Progress(total=len(tars), what="indexing", unit="tar", quiet=quiet) as told,
    ):
        for result in pool.map(_scan, tasks):
            found.append(result)
            told.advance()
    split_of = _check_keys(tars, found)
    classes = _classes(settings, tars, found)
    shards: dict[str, list[ShardInfo]] = {
        name: [] for name in SPLITS if any(split == name for split, _ in tars)
    }
    for (split, tar), one in zip(tars, found, strict=True):
        shards[split].append(_write_index(tar, one, classes))
    total = sum(len(one.keys) for one in found)
    return write_manifest(
        directory,
        Manifest(
            dataset=settings.dataset or directory.resolve().name,
            classes=classes,
            label_rule="given",
            protocol=ProtocolInfo(
                name="indexed",
                version=1,
                settings={"splits": dict(settings.splits)},
                hash=protocol_hash(split_of),
            ),
            source={"name": "index", "read": total, "kept": total, "dropped": {}},
            packing={
                "image_mode": "original",
                "image_short_side_px": None,
                "image_quality": 90,
                "fields": {
                    "image": list(settings.fields.image),
                    "text": list(settings.fields.text),
                    "label": ",".join(settings.labels),
                },
            },
            splits={name: split_info(parts, classes) for name, parts in shards.items()},
        ),
    )


def _tars_of(directory: Path, settings: IndexSettings) -> list[tuple[str, Path]]:
    """(split, tar) of every tar, splits in their order, tars by name."""
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give the one that holds the tars")
    paths = sorted(directory.glob("*.tar"))
    found: list[tuple[str, Path]] = []
    for path in paths:
        splits = [name for name, pattern in settings.splits if fnmatch.fnmatch(path.name, pattern)]
        if len(set(splits)) != 1:
            what = f"in {' and '.join(splits)}" if splits else "in no split"
            raise UserError(
                f"{path} is {what} by the patterns "
                f"{', '.join(f'{n}={p}' for n, p in settings.splits)}. Name the tars of each split "
                "with --split train=PATTERN --split val=PATTERN --split test=PATTERN"
            )
        found.append((splits[0], path))
    if not found:
        hint = "; unpack .tar.gz first" if list(directory.glob("*.tar.gz")) else ""
        raise UserError(f"{directory} holds no .tar file{hint}")
    return sorted(found, key=lambda one: (SPLITS.index(one[0]), one[1].name))


def _scan(task: _Task) -> _Found:
    """Look at every sample of one tar. Raises `UserError` naming the first that does not fit."""
    path = Path(task.path)
    places: list[tuple[int, int, int, int]] = []
    keys: list[str] = []
    labels: list[str] = []
    try:
        with path.open("rb") as file:
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
        raise UserError(f"{path} is no readable, uncompressed tar ({error})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    return _Found(places, keys, labels, path.stat().st_size, digest)


def _extents(path: Path) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind the last) of each sample: runs of members with the same key."""
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
    """(key, text, label) of one sample; `ValueError` saying what is not as expected."""
    members = tar_members(piece)
    key, image, text, meta = sample_of(members, settings.fields)
    if not image.startswith(_PICTURES):
        raise ValueError(f"the picture of '{key}' is no JPEG, PNG, GIF, WebP or BMP")
    by_field = {name.rpartition("/")[2].partition(".")[2].lower(): data for name, data in members}
    label = _label(by_field, meta, settings.labels)
    if label is None:
        raise ValueError(
            f"'{key}' holds the members {sorted(by_field)} and no class "
            f"({', '.join(settings.labels)}); name it with --label-field"
        )
    classes = settings.classes
    if classes is not None and label not in classes:
        if not (label.isascii() and label.isdigit() and int(label) < len(classes)):
            raise ValueError(f"'{key}' has the class '{label}'; expected {', '.join(classes)}")
        label = classes[int(label)]
    return key, text, label


def _label(
    by_field: Mapping[str, bytes], meta: Mapping[str, object], names: tuple[str, ...]
) -> str | None:
    for name in names:
        label = field_text(name, by_field, meta)
        if label is not None and label.strip():
            return label.strip()
    return None


def _check_keys(tars: list[tuple[str, Path]], found: list[_Found]) -> dict[str, str]:
    """Key -> split; `UserError` for the first key that stands twice."""
    first: dict[str, Path] = {}
    split_of: dict[str, str] = {}
    for (split, tar), one in zip(tars, found, strict=True):
        for number, key in enumerate(one.keys):
            if key in first:
                raise UserError(
                    f"{tar}: sample {number} does not fit: its key '{key}' is also in "
                    f"{first[key]}. Keys must be unique over all tars, and a sample's members "
                    "side by side"
                )
            first[key], split_of[key] = tar, split
    return split_of


def _classes(
    settings: IndexSettings, tars: list[tuple[str, Path]], found: list[_Found]
) -> tuple[str, ...]:
    if settings.classes is not None:
        return settings.classes
    names = sorted({label for one in found for label in one.labels})
    numbers = [name for name in names if name.isascii() and name.isdigit()]
    if numbers:
        raise UserError(
            f"some classes in {tars[0][1].parent} are numbers: {', '.join(names[:10])}; say what "
            "they mean, in order from 0: --classes negative,neutral,positive"
        )
    return tuple(names)


def _write_index(tar: Path, found: _Found, classes: tuple[str, ...]) -> ShardInfo:
    records = np.zeros(len(found.keys), dtype=INDEX_DTYPE)
    for record, place, key, label in zip(
        records, found.places, found.keys, found.labels, strict=True
    ):
        record["offset"], record["length"], record["crc32"], record["text_length"] = place
        record["key_hash"] = record["group"] = key_hash(key)
        record["label"] = classes.index(label)
    content = index_bytes(records, tar_bytes=found.tar_bytes, tar_sha256=found.tar_sha256)
    path = tar.with_suffix(".idx")
    path.write_bytes(content)
    counts = Counter(found.labels)
    return ShardInfo(
        tar=tar.name,
        tar_bytes=found.tar_bytes,
        tar_sha256=found.tar_sha256,
        index=path.name,
        index_sha256=hashlib.sha256(content).hexdigest(),
        num_samples=len(found.keys),
        classes={name: counts[name] for name in classes},
    )
