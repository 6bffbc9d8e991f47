"""Packing: bring every example into packed form, then split, then write tars and manifest.

The same raw files, settings and library versions give the same bytes, whatever the number of
workers or parts, interrupted or not.

    source -> Example -> EncodedSample in chunks (chunks.py, in parallel) -> split (assemble.py)
           -> PackedSample in tars (write.py, tars.py, in parallel)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsa.data.manifest import Manifest
from mmsa.errors import UserError, one_or_many
from mmsa.process.progress import Progress
from shards.example import Example, RawData, Rejected
from shards.packing.assemble import SourceFacts, assemble
from shards.packing.chunks import (
    CHUNK_EXAMPLES,
    Chunk,
    ChunkTask,
    codec_versions,
    fingerprint,
    make_chunk,
)
from shards.packing.merge import finish_part, part_path
from shards.packing.output_directory import refuse_existing
from shards.packing.settings import PackSettings, canonical_json
from shards.packing.workdir import workdir
from shards.packing.worker_pool import WorkerPool, default_workers
from shards.sources import get_source
from shards.splits import own_split
from shards.splits.protocols import check_settings, parse_protocol

_SAMPLES_PER_WORKER = 500  # starting a worker takes as long as packing this many


@dataclass(frozen=True)
class PackResult:
    """The packed set at `path`, and where an older directory there was moved.

    `manifest` is None where `path` is one part of several. `notes` are sentences for the user.
    """

    manifest: Manifest | None
    moved_to: Path | None
    path: Path
    notes: tuple[str, ...] = ()


def pack(
    source_name: str,
    raw: Path,
    out: Path,
    settings: PackSettings,
    *,
    options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    resume: bool = False,
    part: tuple[int, int] | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> PackResult:
    """Pack the raw data set at `raw` into the new directory `out`.

    `options` are settings of the source, by name. `workers` processes share the work (None: one
    per core, or a single one for a small set). `resume` continues an interrupted packing. `part`
    (I, N) packs the I-th of N parts, for `shards.packing.merge`. Raises `UserError` for wrong
    settings or options, a layout that is not the source's, an `out` that exists (unless
    `overwrite`), and where no example is usable. Unusable examples are counted in the manifest and
    listed in `rejected.jsonl`.
    """
    problems = settings.problems()
    if problems:
        raise UserError(one_or_many(problems, where="packing"))
    if settings.protocol is not None:
        parse_protocol(settings.protocol)  # fails now and not after the data is read
    source = get_source(source_name)
    _refuse_inside(raw, out)
    target = out if part is None else part_path(out, *part)
    refuse_existing(target, overwrite=overwrite)
    data = source.open_raw(raw, options)
    settings = replace(settings, protocol=own_split.protocol_for(settings.protocol, data))
    notes = own_split.notes(settings.protocol, data)
    protocol = parse_protocol(str(settings.protocol))
    check_settings(protocol, dataset=data.dataset, seed=settings.seed, ratios=settings.ratios)
    encoding: dict[str, Any] = {
        "source": source_name,
        "raw": str(raw.resolve()),
        "options": dict(options or {}),
        "part": part,
        **settings.image.facts(),
        **codec_versions(),
    }
    if workers is None:
        workers = max(1, min(default_workers(), data.total // _SAMPLES_PER_WORKER))
    fields = source.Settings.model_fields
    defaults = {name: field.get_default() for name, field in fields.items()}
    work_in = workdir(target, encoding, resume=resume, defaults=defaults)
    with work_in as work, WorkerPool(workers) as pool:
        chunks, total_chunks = _encode_all(
            data, work / "chunks", settings, encoding, part, pool, quiet=quiet
        )
        facts = SourceFacts(
            source=source_name,
            classes=data.classes,
            dataset=data.dataset,
            label_rule=data.label_rule,
            facts=data.facts(),
            codecs=codec_versions(),
            classes_are=data.classes_are,
            labels=dict(data.labels),
        )
        if part is not None:
            moved_to = finish_part(
                work, target, facts, encoding, settings, part, total_chunks, overwrite=overwrite
            )
            return PackResult(None, moved_to, target, notes)
        manifest, moved_to = assemble(
            work, out, facts, chunks, settings, pool, raw=str(raw), overwrite=overwrite, quiet=quiet
        )
        return PackResult(manifest, moved_to, out, notes)


def _refuse_inside(raw: Path, out: Path) -> None:
    if raw.resolve().is_relative_to(out.resolve()):
        raise UserError(f"the raw data {raw} would be moved aside with {out}; give another OUT")


def _encode_all(
    data: RawData,
    directory: Path,
    settings: PackSettings,
    encoding: dict[str, Any],
    part: tuple[int, int] | None,
    pool: WorkerPool,
    *,
    quiet: bool,
) -> tuple[list[Chunk], int]:
    """The chunks of `data` in order, and their number.

    Of one part, the chunks stay on disk alone, because only `merge` needs them: the memory of a
    part does not grow with its samples.
    """
    shared = canonical_json({**encoding, "part": None, "raw": None})
    total = total_chunks = 0

    def tasks() -> Iterator[ChunkTask]:
        nonlocal total, total_chunks
        for number, items in enumerate(_chunked(data)):
            total += len(items)
            total_chunks += 1
            if part is None or number % part[1] == part[0] - 1:
                mark = fingerprint(items, shared)
                yield ChunkTask(str(directory), number, items, settings.image, mark)

    expected = data.total if part is None else data.total // part[1]
    chunks = []
    with Progress(total=expected, what="reading", quiet=quiet) as progress:
        for chunk in pool.map(make_chunk, tasks()):
            if part is None:
                chunks.append(chunk)
            progress.advance(chunk.num_items)
    assert total == data.total, (total, data.total)
    return chunks, total_chunks


def _chunked(data: RawData) -> Iterator[list[Example | Rejected]]:
    items: list[Example | Rejected] = []
    for item in data.items:
        items.append(item)
        if len(items) == CHUNK_EXAMPLES:
            yield items
            items = []
    if items:
        yield items
