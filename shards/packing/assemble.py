"""From chunks to a packed data set: the split, the shards, the manifest and the other files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmsa.data.manifest import MANIFEST_NAME, Manifest, SplitInfo, version_of, write_manifest
from mmsa.errors import UserError
from shards.class_names import refuse_empty
from shards.example import ClassesAre, EncodedSample, Reason, Rejected
from shards.packing.chunks import Chunk
from shards.packing.output_directory import put_in_place
from shards.packing.settings import PackSettings
from shards.packing.workdir import ResumableError
from shards.packing.worker_pool import WorkerPool
from shards.packing.write import write_splits
from shards.reports.card import CARD_NAME, card_text
from shards.reports.dropped import (
    MOST_DROPPED_PERCENT,
    OPTION_FOR,
    REJECTED_NAME,
    examples,
    large_shares,
)
from shards.sources import SOURCES
from shards.splits.by_hash import SPLITS
from shards.splits.protocols import Assignment, assign

LEFT_OUT = "left out by the protocol"
_SHOWN = 5  # labels in a message


@dataclass(frozen=True)
class SourceFacts:
    """Facts about the raw data for the manifest, and the versions of the image codecs.

    `classes_are` and `labels` are as in `RawData`.
    """

    source: str
    classes: tuple[str, ...]
    dataset: str
    label_rule: str
    facts: dict[str, Any]
    codecs: dict[str, str]
    classes_are: ClassesAre = "fixed"
    labels: dict[str, int] = field(default_factory=dict)


def assemble(
    work: Path,
    out: Path,
    source: SourceFacts,
    chunks: Sequence[Chunk],
    settings: PackSettings,
    pool: WorkerPool,
    *,
    raw: str,
    overwrite: bool,
    quiet: bool,
) -> tuple[Manifest, Path | None]:
    """Split the samples of all `chunks`, write `work/out` and rename it to `out`.

    `chunks` are in the order of the raw data, which messages call `raw`. Returns the manifest and
    where an older `out` was moved. Raises `UserError` where no sample is usable, where one reason
    rejects more than half of them, where a stated class of a set to train on has none, and where
    the protocol cannot be applied.
    """
    samples: dict[str, EncodedSample] = {}
    for sample in (sample for chunk in chunks for sample in chunk.samples):
        assert sample.key not in samples, f"the source gave {sample.key} twice"
        samples[sample.key] = sample
    rejected = [item for chunk in chunks for item in chunk.rejected]
    if not samples:
        raise UserError(_nothing_kept(raw, rejected, source.source))
    if not settings.allow_dropped:
        _refuse_dropped(raw, len(samples), rejected, source.source)
    source = _with_classes_of(source, samples)
    assignment = _assign(samples, source.dataset, settings)
    names = _split_names(assignment)
    if source.classes_are == "stated" and "train" in names:
        counts = Counter(sample.example.label for sample in samples.values())
        _refuse_rejected_classes(source, counts, rejected)
        refuse_empty(source.classes, counts, labels=Counter(source.labels))
    splits = write_splits(
        work, names, samples, assignment, source.classes, settings.size, pool, quiet=quiet
    )
    directory = work / "out"
    lines = [(item.source_id, str(item.reason), item.detail) for item in rejected]
    for key, why in assignment.left_out.items():
        lines.append((samples[key].example.source_id, LEFT_OUT, why))
    listed = rejected_lines(lines)
    (directory / REJECTED_NAME).write_bytes(listed)
    rejected_sha256 = hashlib.sha256(listed).hexdigest()
    manifest = _manifest(source, settings, assignment, splits, lines, rejected_sha256)
    manifest = write_manifest(directory, manifest)
    (directory / CARD_NAME).write_text(card_text(manifest), encoding="utf-8")
    _remove_others(directory, manifest)
    return manifest, put_in_place(directory, out, overwrite=overwrite)


def _assign(
    samples: Mapping[str, EncodedSample], dataset: str, settings: PackSettings
) -> Assignment:
    try:
        assignment = assign(
            str(settings.protocol),
            list(samples.values()),
            dataset=dataset,
            seed=settings.seed,
            ratios=settings.ratios,
            allow_missing=settings.allow_missing,
        )
    except UserError as error:
        # Encoding is done and does not depend on the split, so the user may choose another one.
        raise ResumableError(
            f"{error}. The images are already encoded and kept: add --resume to the next command, "
            "which may use other options for the split",
            anew=f"{error}. Pack again with other options for the split",
        ) from None
    assert len(assignment.split_of) + len(assignment.left_out) == len(samples)
    return assignment


def _split_names(assignment: Assignment) -> list[str]:
    """The splits that have samples, and those whose share is not zero but that got none."""
    names = set(assignment.split_of.values())
    shares = assignment.info.settings.get("ratios") or {}
    names |= {name for name, share in shares.items() if share}
    return [name for name in SPLITS if name in names]


def _with_classes_of(source: SourceFacts, samples: Mapping[str, EncodedSample]) -> SourceFacts:
    """`source` with the classes to pack: of those found in the data, the ones with a usable sample.

    The others are a warning among its facts.
    """
    if source.classes_are != "found":
        return source
    labels = {sample.example.label for sample in samples.values()}
    facts = dict(source.facts)
    if lost := [name for name in source.classes if name not in labels]:
        shown = ", ".join(f"{name!r} ({source.labels.get(name, 0):,})" for name in lost[:_SHOWN])
        more = f" and {len(lost) - _SHOWN:,} more" * (len(lost) > _SHOWN)
        told = f"no class, because all samples with this label are rejected: {shown}{more}"
        facts["warnings"] = [*facts.get("warnings", []), told]
    classes = tuple(name for name in source.classes if name in labels)
    return replace(source, classes=classes, facts=facts)


def _refuse_rejected_classes(
    source: SourceFacts, counts: Mapping[str, int], rejected: Sequence[Rejected]
) -> None:
    """Raise `UserError` where a stated class has rows in the data, and all of them are rejected."""
    lost = [name for name in source.classes if not counts.get(name) and source.labels.get(name)]
    if lost:
        shown = ", ".join(f"{name!r} ({source.labels[name]:,})" for name in lost[:_SHOWN])
        reasons = Counter(str(item.reason) for item in rejected).most_common()
        why = ", ".join(f"{number:,} {reason}" for reason, number in reasons)
        raise UserError(
            f"all samples of the class {shown} are rejected, so that there is nothing to learn it "
            f"from. Rejected in all: {why}. Mend the data, or leave the class out of --classes"
        )


def _refuse_dropped(raw: str, kept: int, rejected: Sequence[Rejected], source: str) -> None:
    """Raise where one reason rejects more than half of the samples, with examples of it."""
    counts = Counter(str(item.reason) for item in rejected)
    for share in large_shares(counts, kept + len(rejected), percent=MOST_DROPPED_PERCENT):
        found = [(r.source_id, r.detail) for r in rejected if str(r.reason) == share.reason]
        told = f"{share} of {raw}: {examples(found)}"
        option = OPTION_FOR.get(share.reason)
        if option is not None:  # with another value nothing of the finished work can be used
            raise UserError(
                f"{told}. {option}, mend the data, or add --allow-dropped to pack the rest"
            )
        hint = _missing_hint([r for r in rejected if str(r.reason) == share.reason], source)
        raise ResumableError(
            f"{told}. Mend the data and add --resume, or add --allow-dropped --resume to pack the "
            f"rest; the images that are encoded are kept{hint}",
            anew=f"{told}. Mend the data, or add --allow-dropped to pack the rest{hint}",
        )


def _nothing_kept(raw: str, rejected: Sequence[Rejected], source: str) -> str:
    if not rejected:
        return f"{raw} has no samples: its label file has no lines and its folder no files"
    counts = Counter(str(item.reason) for item in rejected)
    reasons = ", ".join(f"{number} x {reason}" for reason, number in counts.most_common())
    first = rejected[0]
    other_encoding = Reason.OTHER_ENCODING in counts
    return (
        f"none of the {len(rejected)} samples of {raw} can be used: {reasons}. "
        f"The first: id '{first.source_id}', {first.reason} ({first.detail}). Nothing was packed"
        + ("; set the encoding of the texts with --encoding" if other_encoding else "")
        + _missing_hint(rejected, source)
    )


def _missing_hint(rejected: Sequence[Rejected], name: str) -> str:
    """What to do about samples that are rejected because they lack a modality; else empty."""
    source = SOURCES.get(name)
    if source is None or "keep_missing" not in source.Settings.model_fields:
        return ""
    of_texts = {Reason.NO_TEXT, Reason.EMPTY_TEXT}
    without_image = [item for item in rejected if item.reason == Reason.NO_IMAGE]
    # A path to no file is a mistake, which no option makes a sample without an image.
    wrong = [item for item in without_image if source.names_images and item.no_file]
    hint = ". Paths of images are relative to the folder of the table" if wrong else ""
    wanted = ["text"] * any(item.reason in of_texts for item in rejected)
    wanted += ["image"] * (len(without_image) > len(wrong))
    if not wanted:
        return hint
    named = " or ".join(f"no {modality}" for modality in wanted)
    return f"{hint}. Samples that have {named} are kept with --keep-missing {','.join(wanted)}"


def rejected_lines(lines: Iterable[tuple[str, str, str]]) -> bytes:
    """The content of `rejected.jsonl`, of (source id, reason, detail)."""
    return "".join(
        json.dumps({"source_id": source_id, "reason": reason, "detail": detail}, ensure_ascii=False)
        + "\n"
        for source_id, reason, detail in lines
    ).encode("utf-8")


def _manifest(
    source: SourceFacts,
    settings: PackSettings,
    assignment: Assignment,
    splits: dict[str, SplitInfo],
    rejected: Sequence[tuple[str, str, str]],
    rejected_sha256: str,
) -> Manifest:
    kept = sum(split.num_samples for split in splits.values())
    dropped = Counter(reason for _, reason, _ in rejected)
    order = [*map(str, Reason), LEFT_OUT]
    source_info: dict[str, Any] = {
        "name": source.source,
        "read": kept + len(rejected),
        "kept": kept,
        "dropped": {reason: dropped[reason] for reason in order if dropped[reason]},
        "rejected_sha256": rejected_sha256,
        "facts": source.facts,
        "groups": assignment.facts,
    }
    packing: dict[str, Any] = {
        **settings.image.facts(),
        **settings.size.facts(),
        "text_encoding": "utf-8",
        **source.codecs,
    }
    return Manifest(
        version=version_of(splits),
        dataset=source.dataset,
        classes=source.classes,
        label_rule=source.label_rule,
        protocol=assignment.info,
        source=source_info,
        packing=packing,
        splits=splits,
    )


def _remove_others(directory: Path, manifest: Manifest) -> None:
    """Remove shards that an interrupted packing with another split left behind."""
    listed = {MANIFEST_NAME, REJECTED_NAME, CARD_NAME}
    for split in manifest.splits.values():
        for shard in split.shards:
            listed |= {shard.tar, shard.index}
    for path in directory.iterdir():
        if path.name not in listed:
            path.unlink()
