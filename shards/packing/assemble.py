"""From chunks to a packed data set: the split, the shards, the manifest and the files beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.data.manifest import MANIFEST_NAME, Manifest, SplitInfo, write_manifest
from mmsa.errors import UserError
from shards.duplicates.groups import Candidate
from shards.example import Reason, Rejected
from shards.packing.chunks import Chunk
from shards.packing.output_directory import put_in_place
from shards.packing.settings import PackSettings
from shards.packing.workdir import Resumable
from shards.packing.worker_pool import WorkerPool
from shards.packing.write import Located, write_splits
from shards.reports.card import CARD_NAME, card_text
from shards.splits.by_hash import SPLITS
from shards.splits.protocols import Assignment, assign

REJECTED_NAME = "rejected.jsonl"
LEFT_OUT = "left out by the protocol"


@dataclass(frozen=True)
class Encodings:
    """All chunks of a raw data set in order, and what its source says of it."""

    source: str
    chunks: Sequence[Chunk]
    classes: tuple[str, ...]
    dataset: str
    label_rule: str
    facts: dict[str, Any]
    codecs: dict[str, str]

    def rejected(self) -> Iterator[Rejected]:
        """What was read and is not usable, in the order of the chunks."""
        for chunk in self.chunks:
            yield from chunk.rejected

    def located(self) -> dict[str, Located]:
        """Key -> usable example, in the order of reading; groups are not known yet."""
        found: dict[str, Located] = {}
        for chunk in self.chunks:
            for sample in chunk.samples:
                assert sample.key not in found, f"the source gave {sample.key} twice"
                found[sample.key] = Located(sample, chunk.path, group=0)
        return found


def assemble(
    work: Path,
    out: Path,
    encodings: Encodings,
    settings: PackSettings,
    pool: WorkerPool,
    *,
    raw: str,
    overwrite: bool,
    quiet: bool,
) -> tuple[Manifest, Path | None]:
    """Split the usable examples, write `work/out` and rename it to `out`.

    `raw` is what messages call the raw data. Returns the manifest and where an older `out` went.
    Raises `UserError` where no example is usable or the protocol cannot be applied.
    """
    located = encodings.located()
    rejected = list(encodings.rejected())
    if not located:
        raise UserError(_nothing_kept(raw, rejected))
    assignment = _assign(located, encodings.dataset, settings)
    kept = {
        key: Located(one.sample, one.chunk, assignment.group_of[key])
        for key, one in located.items()
        if key in assignment.split_of
    }
    names = _split_names(assignment)
    splits = write_splits(
        work,
        names,
        assignment.split_of,
        kept,
        encodings.classes,
        settings.size,
        pool,
        quiet=quiet,
    )
    directory = work / "out"
    left_out = [(located[key].sample.source_id, why) for key, why in assignment.left_out.items()]
    lines = [(item.source_id, str(item.reason), item.detail) for item in rejected]
    lines += [(source_id, LEFT_OUT, why) for source_id, why in left_out]
    rejected_sha256 = _write_rejected(directory / REJECTED_NAME, lines)
    manifest = _manifest(encodings, settings, assignment, splits, lines, rejected_sha256)
    manifest = write_manifest(directory, manifest)
    (directory / CARD_NAME).write_text(card_text(manifest), encoding="utf-8")
    _remove_others(directory, manifest)
    return manifest, put_in_place(directory, out, overwrite=overwrite)


def _assign(located: dict[str, Located], dataset: str, settings: PackSettings) -> Assignment:
    candidates = [
        Candidate(
            key=key,
            source_id=one.sample.source_id,
            label=one.sample.label,
            text_label=one.sample.text_label or "",
            image_label=one.sample.image_label or "",
            text=one.sample.text,
            image_hash=bytes.fromhex(one.sample.image_hash),
        )
        for key, one in located.items()
    ]
    try:
        assignment = assign(
            settings.protocol,
            candidates,
            dataset=dataset,
            seed=settings.seed,
            ratios=settings.ratios,
            allow_missing=settings.allow_missing,
        )
    except UserError as error:
        # Decoding is done and does not depend on the split: another one can be asked for.
        raise Resumable(
            f"{error}. The pictures are encoded already and kept: add --resume to the next command "
            "too, with whatever options of splitting"
        ) from None
    assert len(assignment.split_of) + len(assignment.left_out) == len(located)
    return assignment


def _split_names(assignment: Assignment) -> list[str]:
    """The splits that have samples, and those that were given a share and got none."""
    names = set(assignment.split_of.values())
    shares = assignment.info.settings.get("ratios") or {}
    names |= {name for name, share in shares.items() if share}
    return [name for name in SPLITS if name in names]


def _nothing_kept(raw: str, rejected: Sequence[Rejected]) -> str:
    if not rejected:
        return f"{raw} holds no samples: its label file has no lines and its folder no files"
    counts = Counter(str(item.reason) for item in rejected)
    reasons = ", ".join(f"{number} x {reason}" for reason, number in counts.most_common())
    first = rejected[0]
    return (
        f"none of the {len(rejected)} samples of {raw} can be used: {reasons}. "
        f"The first: id '{first.source_id}', {first.reason} ({first.detail}). Nothing was packed"
        + ("; --encoding names that of the texts" if Reason.OTHER_ENCODING in counts else "")
    )


def _write_rejected(path: Path, lines: Iterable[tuple[str, str, str]]) -> str:
    """Write `rejected.jsonl`; returns its sha256."""
    content = "".join(
        json.dumps({"source_id": source_id, "reason": reason, "detail": detail}, ensure_ascii=False)
        + "\n"
        for source_id, reason, detail in lines
    ).encode("utf-8")
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _manifest(
    encodings: Encodings,
    settings: PackSettings,
    assignment: Assignment,
    splits: dict[str, SplitInfo],
    rejected: Sequence[tuple[str, str, str]],
    rejected_sha256: str,
) -> Manifest:
    kept = sum(split.num_samples for split in splits.values())
    dropped = Counter(reason for _, reason, _ in rejected)
    order = [*map(str, Reason), LEFT_OUT]
    source: dict[str, Any] = {
        "name": encodings.source,
        "read": kept + len(rejected),
        "kept": kept,
        "dropped": {reason: dropped[reason] for reason in order if dropped[reason]},
        "rejected_sha256": rejected_sha256,
        "facts": encodings.facts,
        "groups": assignment.facts,
    }
    packing: dict[str, Any] = {
        **settings.image.facts(),
        **settings.size.facts(),
        "text_encoding": "utf-8",
        **encodings.codecs,
    }
    return Manifest(
        dataset=encodings.dataset,
        classes=encodings.classes,
        label_rule=encodings.label_rule,
        protocol=assignment.info,
        source=source,
        packing=packing,
        splits=splits,
    )


def _remove_others(directory: Path, manifest: Manifest) -> None:
    """Remove what an interrupted packing with another split left behind."""
    listed = {MANIFEST_NAME, REJECTED_NAME, CARD_NAME}
    for split in manifest.splits.values():
        for shard in split.shards:
            listed |= {shard.tar, shard.index}
    for path in directory.iterdir():
        if path.name not in listed:
            path.unlink()
