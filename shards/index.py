"""Index files and a manifest for existing WebDataset tars, which are not changed.

Every sample is read once (`tar_scan.py`): its fields, its class, its key.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.data.index_file import INDEX_DTYPE, index_bytes, key_hash, missing_counts
from mmsa.data.manifest import (
    MANIFEST_NAME,
    PLAIN_NAME,
    Manifest,
    ProtocolInfo,
    ShardInfo,
    load_manifest,
    manifest_text,
    version_of,
)
from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_files
from mmsa.process.progress import Progress
from mmsa.raw_files.numbers import number_in, position_in
from shards.class_names import refuse_empty, refuse_similar
from shards.example import Reason, Rejected
from shards.packing.assemble import rejected_lines
from shards.packing.worker_pool import WorkerPool, default_workers
from shards.packing.write import split_info
from shards.reports.dropped import REJECTED_NAME
from shards.splits.by_hash import SPLITS
from shards.splits.protocols import protocol_hash
from shards.tar_scan import (
    LATER_IMAGE_FIELDS,
    IndexSettings,
    ScanTask,
    TarContents,
    scan_tar,
)

INDEXED = "indexed"  # the protocol's name in the manifests


def index(
    directory: Path,
    settings: IndexSettings,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Manifest:
    """Write an index next to each tar of `directory`, and a manifest; returns the manifest.

    Raises `UserError` where no tar fits the patterns or one fits two, where a sample does not fit
    the fields, where a key is repeated, and where index files exist (unless `overwrite`). With
    `settings.skip_bad` such samples and later ones of a key are left out, and listed in
    `rejected.jsonl`. Nothing is written before every sample has been read. Each file is whole or
    absent, and the manifest is the last one: an older one is removed before the first index.
    """
    tars = _tars_of(directory, settings)
    _refuse_packed(directory)
    outputs = [directory / MANIFEST_NAME, *(tar.with_suffix(".idx") for _, tar in tars)]
    if settings.skip_bad:
        outputs.append(directory / REJECTED_NAME)
    existing = [path for path in outputs if path.exists()]
    if existing and not overwrite:
        raise UserError(f"{existing[0]} already exists; --overwrite replaces it")
    tasks = [ScanTask(str(tar), settings) for _, tar in tars]
    found: list[TarContents] = []
    count = min(default_workers(), len(tars)) if workers is None else workers
    with (
        WorkerPool(count) as pool,
        Progress(total=len(tars), what="indexing", unit="tars", quiet=quiet) as progress,
    ):
        for result in pool.map(scan_tar, tasks):
            found.append(result)
            progress.advance()
    found, split_of = _unique_keys(tars, found, skip_bad=settings.skip_bad)
    classes = _classes(settings, tars, found)
    with_tars = {split for split, _ in tars}
    shards: dict[str, list[ShardInfo]] = {name: [] for name in SPLITS if name in with_tars}
    files = {}
    for (split, tar), one in zip(tars, found, strict=True):
        shard, content = _index_of(tar, one, classes)
        shards[split].append(shard)
        files[shard.index] = content
    if settings.skip_bad:
        left_out = (item for one in found for item in one.rejected)
        lines = [(item.source_id, str(item.reason), item.detail) for item in left_out]
        files[REJECTED_NAME] = rejected_lines(lines)
    splits = {name: split_info(parts, classes) for name, parts in shards.items()}
    manifest = Manifest(
        version=version_of(splits),
        dataset=settings.dataset or directory.resolve().name,
        classes=classes,
        label_rule="given",
        protocol=ProtocolInfo(
            name=INDEXED,
            version=1,
            settings={"splits": dict(settings.splits)},
            hash=protocol_hash(split_of),
        ),
        source=_source(settings, found, files.get(REJECTED_NAME)),
        packing=_packing(settings, found),
        splits=splits,
    ).sealed()
    _write(directory, files, manifest)
    return manifest


def _write(directory: Path, files: dict[str, bytes], manifest: Manifest) -> None:
    """Write `files` and then the manifest. Raises `UserError` where one of them cannot be."""
    text = manifest_text(manifest)
    try:
        files[MANIFEST_NAME] = text.encode("utf-8")  # the last one
    except UnicodeEncodeError as error:
        line = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
        raise UserError(
            f"the manifest would not be UTF-8, at {ascii(line.strip()[:200])}: an option, a class, "
            "or the directory's name, in place of which --dataset gives another"
        ) from None
    try:
        # Readers must find the old set or the new one, never some of both.
        write_files(directory, files, first_remove=MANIFEST_NAME)
    except OSError as error:
        raise UserError(
            f"the index of {directory} cannot be written: {error}. Nothing there may be read-only, "
            f"and it needs {sum(map(len, files.values())):,} bytes. Then repeat the command, "
            "with --overwrite where it says that an index is there"
        ) from None


def _refuse_packed(directory: Path) -> None:
    """Raise `UserError` where `pack` made `directory`: its manifest has facts that tars lack."""
    try:
        manifest = load_manifest(directory)
    except UserError:  # none, or one that is damaged
        return
    if manifest.protocol.name != INDEXED:
        raise UserError(
            f"{directory} was made by python -m shards pack: it already has index files, and its "
            "manifest would be lost. Train with it as it is"
        )


def _tars_of(directory: Path, settings: IndexSettings) -> list[tuple[str, Path]]:
    """(split, tar) of every tar, splits in their order, tars by name."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the directory of the tars")
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
        if not PLAIN_NAME.fullmatch(path.name):
            raise UserError(
                f"{ascii(path.name)} in {directory} cannot be in a manifest: names of files there "
                "are UTF-8, without a colon, and do not begin with a dot. Rename it, or move it to "
                "another directory if it is not a tar of the set"
            )
        found.append((splits[0], path))
    if not found:
        hint = "; unpack .tar.gz first" if list(directory.glob("*.tar.gz")) else ""
        raise UserError(f"{directory} has no .tar file{hint}")
    return sorted(found, key=lambda one: (SPLITS.index(one[0]), one[1].name))


def _unique_keys(
    tars: list[tuple[str, Path]], found: list[TarContents], *, skip_bad: bool
) -> tuple[list[TarContents], dict[str, str]]:
    """`found`, and key -> split. The first repeated key is a `UserError`, or is left out."""
    first: dict[str, Path] = {}
    split_of: dict[str, str] = {}
    unique: list[TarContents] = []
    for (split, tar), one in zip(tars, found, strict=True):
        repeated: dict[int, Rejected] = {}
        for number, key in enumerate(one.keys):
            if key in first:
                also = f"its key '{key}' is also in {first[key].name}"
                if not skip_bad:
                    raise UserError(
                        f"{tar}: sample {number} does not fit: {also}. Keys must be unique over "
                        "all tars, and a sample's members adjacent. --skip-bad leaves out all but "
                        "the first"
                    )
                repeated[number] = Rejected(key, Reason.ID_REPEATED, f"{tar.name}: {also}")
            else:
                first[key], split_of[key] = tar, split
        unique.append(one.without(repeated) if repeated else one)
        if repeated and not unique[-1].keys:
            raise UserError(f"{tar}: the keys of all its samples are also in other tars")
    return unique, split_of


def _source(
    settings: IndexSettings, found: list[TarContents], rejected: bytes | None
) -> dict[str, Any]:
    """The manifest's `source`; `rejected` is the content of `rejected.jsonl`, if it has one."""
    left_out = [item for one in found for item in one.rejected]
    kept = sum(len(one.keys) for one in found)
    source: dict[str, Any] = {
        "name": "index",
        "read": kept + len(left_out),
        "kept": kept,
        "dropped": dict(Counter(str(item.reason) for item in left_out).most_common()),
    }
    if rejected is not None:
        source["rejected_sha256"] = hashlib.sha256(rejected).hexdigest()
    facts: dict[str, Any] = {}
    if settings.max_characters != MAX_CHARACTERS:
        facts["max_characters"] = settings.max_characters
    warnings = [warning for one in found for warning in one.warnings]
    if warnings:
        facts["warnings"] = warnings
    return {**source, "facts": facts} if facts else source


def _packing(settings: IndexSettings, found: list[TarContents]) -> dict[str, Any]:
    """The manifest's `packing`."""
    return {
        "image_mode": "original",
        "image_short_side_px": None,
        "image_quality": 90,
        "fields": {
            "image": _image_fields(settings, found),
            "text": list(settings.fields.text),
            "label": ",".join(settings.labels),
        },
    }


def _image_fields(settings: IndexSettings, found: list[TarContents]) -> list[str]:
    """The fields of the settings; those that the default got later only where samples have them."""
    used = {name for one in found for name in one.image_fields}
    return [
        name for name in settings.fields.image if name in used or name not in LATER_IMAGE_FIELDS
    ]


def _classes(
    settings: IndexSettings, tars: list[tuple[str, Path]], found: list[TarContents]
) -> tuple[str, ...]:
    labels = Counter(label for one in found for label in one.labels)
    if settings.classes is not None:
        if any(split == "train" for split, _ in tars):
            refuse_empty(settings.classes, labels, labels=labels)
        return settings.classes
    names = tuple(sorted(labels))
    where = tars[0][1].parent
    as_found = f"--classes={','.join(names)}"
    if any(number_in(name) is not None for name in names):
        in_order = all(position_in(name, len(names)) is not None for name in names)
        how = "Name them in order from 0: --classes negative,neutral,positive. " if in_order else ""
        raise UserError(
            f"some classes in {where} are numbers: {', '.join(names[:10])}. {how}To keep them as "
            f"they are: {as_found if len(names) <= 10 else '--classes with all of them'}"
        )
    refuse_similar(labels, where=f"{where}", keep=f"To keep each: {as_found}")
    return names


def _index_of(tar: Path, found: TarContents, classes: tuple[str, ...]) -> tuple[ShardInfo, bytes]:
    """The manifest's entry of a tar, and the content of its index."""
    records = np.zeros(len(found.keys), dtype=INDEX_DTYPE)
    for record, place, key, label in zip(
        records, found.places, found.keys, found.labels, strict=True
    ):
        for name, value in zip(
            ("offset", "length", "crc32", "text_length", "missing"), place, strict=True
        ):
            record[name] = value
        record["key_hash"] = record["group"] = key_hash(key)
        record["label"] = classes.index(label)
    content = index_bytes(records, tar_bytes=found.tar_bytes, tar_sha256=found.tar_sha256)
    counts = Counter(found.labels)
    shard = ShardInfo(
        tar=tar.name,
        tar_bytes=found.tar_bytes,
        tar_sha256=found.tar_sha256,
        index=tar.with_suffix(".idx").name,
        index_sha256=hashlib.sha256(content).hexdigest(),
        num_samples=len(found.keys),
        classes={name: counts[name] for name in classes},
        missing=missing_counts(records),
    )
    return shard, content
