"""One packing as several jobs: parts made with `pack --part I/N`, joined by `merge`.

A part decodes and encodes every N-th chunk of the raw data, which is nearly all of the cost. The
split and the tars need all chunks, so `merge` makes them. The result is byte for byte that of a
packing without parts.

    OUT.part-3-of-8/part.json    what was packed, and how
                    chunks/      see chunks.py
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mmsa.data.manifest import Manifest
from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json
from mmsa.process.progress import Progress
from shards.packing.assemble import SourceFacts, assemble
from shards.packing.chunks import Chunk, chunk_path, read_chunk
from shards.packing.output_directory import put_in_place, refuse_existing
from shards.packing.settings import PackSettings
from shards.packing.workdir import workdir
from shards.packing.worker_pool import WorkerPool, default_workers

_PART_NAME = "part.json"
_PART_VERSION = 2
_PART_DIRECTORY = re.compile(r"part-([0-9]+)-of-([0-9]+)")


class _Part(BaseModel):
    """`part.json`; `chunks` are the numbers of its chunks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "mmsa-part"
    version: int = _PART_VERSION
    part: int
    parts: int
    source: SourceFacts
    raw: str
    encoding: dict[str, Any]
    settings: PackSettings
    chunks: tuple[int, ...]
    total_chunks: int


def part_path(out: Path, part: int, parts: int) -> Path:
    """The directory of one part of the packing into `out`."""
    return out.parent / f"{out.name}.part-{part}-of-{parts}"


def finish_part(
    work: Path,
    target: Path,
    source: SourceFacts,
    encoding: dict[str, Any],
    settings: PackSettings,
    part: tuple[int, int],
    total_chunks: int,
    *,
    overwrite: bool,
) -> Path | None:
    """Make `work` the finished part `target`; returns where an older one was moved.

    `encoding` holds the settings that all parts must share, `total_chunks` counts all parts'.
    """
    record = _Part(
        part=part[0],
        parts=part[1],
        source=source,
        raw=str(encoding["raw"]),
        encoding={k: v for k, v in encoding.items() if k not in ("raw", "part")},
        settings=settings,
        chunks=tuple(range(part[0] - 1, total_chunks, part[1])),
        total_chunks=total_chunks,
    )
    directory = work / "out"
    (directory / _PART_NAME).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (work / "chunks").rename(directory / "chunks")
    return put_in_place(directory, target, overwrite=overwrite)


def merge(
    out: Path,
    *,
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_dropped: bool = False,
    remove_parts: bool = False,
    quiet: bool = False,
) -> tuple[Manifest, Path | None]:
    """Join the parts next to `out` into the packed data set `out`.

    Returns the manifest and where an older `out` was moved. `allow_dropped` is as in
    `PackSettings`. `remove_parts` deletes the parts afterwards. Raises `UserError` for missing or
    damaged parts and for parts that differ in their settings or raw data.
    """
    refuse_existing(out, overwrite=overwrite)
    directories = _part_directories(out)
    parts = [_read_part(directory) for directory in directories]
    _check_alike(directories, parts)
    first = parts[0]
    chunk_directory = {
        number: directory / "chunks"
        for directory, part in zip(directories, parts, strict=True)
        for number in part.chunks
    }
    places = [(chunk_directory[number], number) for number in range(first.total_chunks)]
    settings = {"merge": [str(path.resolve()) for path in directories], **first.encoding}
    with (
        workdir(out, settings, resume=resume) as work,
        WorkerPool(default_workers() if workers is None else workers) as pool,
    ):
        chunks = []
        with Progress(
            total=len(places), what="reading parts", unit="chunks", quiet=quiet
        ) as progress:
            for chunk in pool.map(_checked_chunk, places):
                chunks.append(chunk)
                progress.advance()
        result = assemble(
            work,
            out,
            first.source,
            chunks,
            replace(first.settings, allow_dropped=allow_dropped or first.settings.allow_dropped),
            pool,
            raw=first.raw,
            overwrite=overwrite,
            quiet=quiet,
        )
    if remove_parts:
        for directory in directories:
            shutil.rmtree(directory)
    return result


def _checked_chunk(place: tuple[Path, int]) -> Chunk:
    chunk = read_chunk(*place, expected=None)
    if chunk is None:
        directory, number = place
        raise UserError(
            f"{chunk_path(directory, number)} is missing or damaged. Remove {directory.parent} and "
            "pack that part again"
        )
    return chunk


def _part_directories(out: Path) -> list[Path]:
    """The directories of all parts of `out`, in order."""
    out = Path(os.path.abspath(out))
    found: dict[tuple[int, int], Path] = {}
    # The name is the user's: it may have brackets, which a pattern must not read as its own.
    for path in out.parent.glob(f"{glob.escape(out.name)}.part-*-of-*"):
        match = _PART_DIRECTORY.fullmatch(path.name.removeprefix(f"{out.name}."))
        if match and path.is_dir():
            found[int(match[1]), int(match[2])] = path
    if not found:
        raise UserError(
            f"no parts found next to {out} ({out.name}.part-1-of-N and so on); make them with: "
            f"python -m shards pack SOURCE RAW {out} --part 1/N"
        )
    counts = sorted({parts for _, parts in found})
    if len(counts) > 1:
        raise UserError(
            f"next to {out} are parts of several packings, in {' and in '.join(map(str, counts))} "
            "parts; remove those that you do not want"
        )
    missing = [number for number in range(1, counts[0] + 1) if (number, counts[0]) not in found]
    if missing:
        shown = ", ".join(f"{number}/{counts[0]}" for number in missing[:20])
        raise UserError(
            f"{len(missing)} of the {counts[0]} parts of {out} are missing: {shown}. Pack "
            "them with --part first"
        )
    return [found[number, counts[0]] for number in range(1, counts[0] + 1)]


def _read_part(directory: Path) -> _Part:
    path = directory / _PART_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != _PART_VERSION:
            raise UserError(
                f"{directory} was packed by another version of mmsa (part format {version}, this "
                f"one reads {_PART_VERSION}); remove it and pack that part again"
            )
        return _Part.model_validate(content)
    except (OSError, ValueError, ValidationError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); remove {directory} and pack that "
            "part again"
        ) from None


def _check_alike(directories: Sequence[Path], parts: Sequence[_Part]) -> None:
    """Raise `UserError` where a part is not of the first one's packing, naming what differs."""
    own = {"part", "raw", "chunks"}  # these may differ
    first = parts[0].model_dump(mode="json", exclude=own)
    for directory, part in zip(directories, parts, strict=True):
        other = part.model_dump(mode="json", exclude=own)
        shown = "; ".join(_differences(first, other))
        if shown:
            raise UserError(
                f"{directories[0].name} and {directory.name} are not parts of one packing: {shown}"
                ". Pack the wrong ones again, with --overwrite"
            )


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """What differs, leaf by leaf: "labels: fused and text"."""
    if isinstance(one, dict) and isinstance(other, dict):
        for inner in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(inner), other.get(inner), inner)
    elif one != other:
        yield f"{name}: {one} and {other}"
