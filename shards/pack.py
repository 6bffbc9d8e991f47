"""Packing: read, check and encode every example, then split, then write tars and manifest.

The same raw files, settings and library versions give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import features

from mmsa.data.canonical import BadPicture, canonical_image
from mmsa.data.manifest import Manifest, ProtocolInfo, SplitInfo, key_hash, write_manifest
from mmsa.errors import UserError, one_or_many
from mmsa.labels import LABEL_NAMES
from shards.aside import refuse_existing, write_aside
from shards.example import Example, RawData, Reason, Reject, Rejected, read_file
from shards.progress import progress
from shards.protocols import PROTOCOLS, assign_splits
from shards.sources import Source, get_source
from shards.splits import SPLITS, packed_order, shard_sizes
from shards.spool import Span, Spool
from shards.tars import PackedSample, write_shard

REJECTED_NAME = "rejected.jsonl"


@dataclass(frozen=True)
class PackSettings:
    """What the command line says. `samples_per_shard` None: see `shard_sizes`."""

    ratios: dict[str, int]
    protocol: str = "random"
    seed: int = 0
    image_short_side_px: int = 256
    image_quality: int = 90
    samples_per_shard: int | None = None

    def problems(self) -> list[str]:
        """What is wrong with these settings, in words; empty where nothing is."""
        found: list[str] = []
        if self.protocol not in PROTOCOLS:
            found.append(f"no protocol is called '{self.protocol}'; known: {', '.join(PROTOCOLS)}")
        if self.seed < 0:
            found.append(f"--seed {self.seed} must be at least 0")
        if self.image_short_side_px < 16:
            found.append(
                f"--image-short-side {self.image_short_side_px} must be at least 16 pixels"
            )
        if not 1 <= self.image_quality <= 95:
            found.append(f"--image-quality {self.image_quality} must be from 1 to 95")
        if self.samples_per_shard is not None and self.samples_per_shard < 1:
            found.append(f"--samples-per-shard {self.samples_per_shard} must be at least 1")
        return found


@dataclass(frozen=True)
class PackResult:
    """What was packed, and where an older directory was moved, if one stood in the way."""

    manifest: Manifest
    moved_to: Path | None


@dataclass(frozen=True, slots=True)
class _Spooled:
    """A usable example: its bytes wait in the spool."""

    source_id: str
    dataset: str
    label: str
    text_label: str
    image_label: str
    width: int
    height: int
    image: Span
    text: Span


def pack(
    source_name: str,
    raw: Path,
    out: Path,
    settings: PackSettings,
    *,
    overwrite: bool = False,
    quiet: bool = False,
) -> PackResult:
    """Pack the raw data set at `raw` into the new directory `out`.

    Raises `UserError` for wrong settings, a layout that is not the source's, an `out` that exists
    (unless `overwrite`), and where no example is usable. Unusable examples are counted in the
    manifest and listed in `rejected.jsonl`.
    """
    problems = settings.problems()
    if problems:
        raise UserError(one_or_many(problems, where="packing"))
    source = get_source(source_name)
    _refuse_inside(raw, out)
    refuse_existing(out, overwrite=overwrite)
    data = source.open(raw)
    with write_aside(out, overwrite=overwrite) as aside:
        directory = aside.directory
        with Spool(directory / ".spool") as spool:
            kept, rejected = _encode_all(data, spool, settings, quiet=quiet)
            if not kept:
                raise UserError(_nothing_kept(raw, rejected))
            _write_rejected(directory / REJECTED_NAME, rejected)
            labels = {key: sample.label for key, sample in kept.items()}
            assignment, protocol = assign_splits(
                settings.protocol, labels, seed=settings.seed, ratios=settings.ratios
            )
            splits = _write_splits(directory, kept, assignment, spool, settings, quiet=quiet)
        manifest = _manifest(source, settings, protocol, splits, rejected)
        manifest = write_manifest(directory, manifest)
    return PackResult(manifest, aside.moved_to)


def _refuse_inside(raw: Path, out: Path) -> None:
    if raw.resolve().is_relative_to(out.resolve()):
        raise UserError(f"the raw data {raw} would be moved aside with {out}; give another OUT")


def _encode_all(
    data: RawData, spool: Spool, settings: PackSettings, *, quiet: bool
) -> tuple[dict[str, _Spooled], list[Rejected]]:
    kept: dict[str, _Spooled] = {}
    rejected: list[Rejected] = []
    for item in progress(data.items, total=data.total, what="reading", quiet=quiet):
        if isinstance(item, Rejected):
            rejected.append(item)
            continue
        assert item.key not in kept, f"the source gave {item.key} twice"
        try:
            kept[item.key] = _encode(item, spool, settings)
        except Reject as reject:
            rejected.append(Rejected(item.source_id, reject.reason, reject.detail))
    assert len(kept) + len(rejected) == data.total, (len(kept), len(rejected), data.total)
    return kept, rejected


def _encode(example: Example, spool: Spool, settings: PackSettings) -> _Spooled:
    content = read_file(
        example.image_path, missing=Reason.NO_IMAGE, unreadable=Reason.UNREADABLE_IMAGE
    )
    try:
        image, width, height = canonical_image(
            content, short_side_px=settings.image_short_side_px, quality=settings.image_quality
        )
    except (BadPicture, OSError) as error:  # the file is read: an OSError is the codec's
        raise Reject(Reason.UNREADABLE_IMAGE, f"{example.image_path.name}: {error}") from None
    return _Spooled(
        source_id=example.source_id,
        dataset=example.dataset,
        label=example.label,
        text_label=example.text_label,
        image_label=example.image_label,
        width=width,
        height=height,
        image=spool.add(image),
        text=spool.add(example.text.encode("utf-8")),
    )


def _nothing_kept(raw: Path, rejected: Sequence[Rejected]) -> str:
    if not rejected:
        return f"{raw} holds no samples: its label file has no lines and its folder no files"
    counts = Counter(str(item.reason) for item in rejected)
    reasons = ", ".join(f"{number} x {reason}" for reason, number in counts.most_common())
    first = rejected[0]
    return (
        f"none of the {len(rejected)} samples of {raw} can be used: {reasons}. "
        f"The first: id '{first.source_id}', {first.reason} ({first.detail}). Nothing was packed"
    )


def _write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for item in rejected:
            line = {"source_id": item.source_id, "reason": item.reason, "detail": item.detail}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_splits(
    directory: Path,
    kept: dict[str, _Spooled],
    assignment: dict[str, str],
    spool: Spool,
    settings: PackSettings,
    *,
    quiet: bool,
) -> dict[str, SplitInfo]:
    splits: dict[str, SplitInfo] = {}
    for split in SPLITS:
        if settings.ratios[split] == 0:
            continue
        keys = packed_order([key for key in kept if assignment[key] == split])
        samples = progress(
            _packed(keys, kept, spool), total=len(keys), what=f"writing {split}", quiet=quiet
        )
        shards = []
        for number, size in enumerate(shard_sizes(len(keys), settings.samples_per_shard)):
            part = (next(samples) for _ in range(size))
            shards.append(write_shard(directory, f"{split}-{number:05d}", part, LABEL_NAMES))
        counts = Counter(kept[key].label for key in keys)
        classes = {label: counts[label] for label in LABEL_NAMES}
        splits[split] = SplitInfo(num_samples=len(keys), classes=classes, shards=tuple(shards))
    return splits


def _packed(keys: Sequence[str], kept: dict[str, _Spooled], spool: Spool) -> Iterator[PackedSample]:
    for key in keys:
        sample = kept[key]
        yield PackedSample(
            key=key,
            label=sample.label,
            group=key_hash(key),  # each sample is its own group until duplicates are looked for
            text=spool.read(sample.text).decode("utf-8"),
            image=spool.read(sample.image),
            facts={
                "text_label": sample.text_label,
                "image_label": sample.image_label,
                "source_id": sample.source_id,
                "dataset": sample.dataset,
                "width": sample.width,
                "height": sample.height,
            },
        )


def _manifest(
    source: Source,
    settings: PackSettings,
    protocol: ProtocolInfo,
    splits: dict[str, SplitInfo],
    rejected: Sequence[Rejected],
) -> Manifest:
    kept = sum(split.num_samples for split in splits.values())
    dropped = Counter(str(item.reason) for item in rejected)
    packing: dict[str, Any] = {
        "image_short_side_px": settings.image_short_side_px,
        "image_quality": settings.image_quality,
        "samples_per_shard": settings.samples_per_shard or "auto",
        "text_encoding": "utf-8",
        "pillow": PIL.__version__,
        "libjpeg": features.version_feature("libjpeg_turbo") or features.version_codec("jpg"),
    }
    return Manifest(
        dataset=source.name,
        classes=LABEL_NAMES,
        label_rule=source.label_rule,
        protocol=protocol,
        source={
            "name": source.name,
            "read": kept + len(rejected),
            "kept": kept,
            "dropped": {str(reason): dropped[reason] for reason in Reason if dropped[reason]},
        },
        packing=packing,
        splits=splits,
    )
