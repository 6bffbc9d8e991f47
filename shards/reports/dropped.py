"""Reasons that reject a large share of a data set: a mistake in the data, or in how it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsa.data.manifest import Manifest
from mmsa.foundation.parsing import parse_json
from shards.example import Reason

REJECTED_NAME = "rejected.jsonl"
MOST_DROPPED_PERCENT = 50  # more for one reason is refused
_WARNED_PERCENT = 5
_SHOWN = 3
_SHOWN_CHARACTERS = 100
# The label rule's own doing, which the user has chosen.
_BY_RULE = {str(r) for r in (Reason.LABELS_CONFLICT, Reason.LABELS_DISAGREE, Reason.NO_MAJORITY)}
_REASONS = {str(reason) for reason in Reason} - _BY_RULE

# What an option of `pack` may change: reason -> advice.
OPTION_FOR = {
    str(
        Reason.OTHER_ENCODING
    ): "Name their encoding with --encoding (latin-1, cp1252, utf-16, ...)",
    str(Reason.TEXT_ENCODING): "Name their encoding with --encoding (utf-8, ...)",
    str(Reason.LARGE_TEXT): "Allow longer texts with --max-characters",
    str(Reason.LARGE_IMAGE): "Allow larger images with --max-pixels",
}


@dataclass(frozen=True)
class Share:
    """How many of `total` samples a reason rejects."""

    reason: str
    number: int
    total: int

    def __str__(self) -> str:
        """As in "missing image takes 60 of 100 samples (60 %)"."""
        percent = 100 * self.number / self.total
        return f"'{self.reason}' takes {self.number:,} of {self.total:,} samples ({percent:.0f} %)"


def large_shares(dropped: Mapping[str, int], total: int, *, percent: int) -> list[Share]:
    """The reasons of `dropped` that reject more than `percent` of `total`, the largest first.

    Samples that a label rule or a protocol leaves out do not count.
    """
    found = [
        Share(reason, number, total)
        for reason, number in dropped.items()
        if reason in _REASONS and 100 * number > percent * total
    ]
    return sorted(found, key=lambda share: -share.number)


def examples(found: Sequence[tuple[str, str]]) -> str:
    """The first of `found`, pairs of an id and what was found there."""
    shown = [
        f"id '{source_id[:_SHOWN_CHARACTERS]}' ({detail[:_SHOWN_CHARACTERS]})"
        for source_id, detail in found[:_SHOWN]
    ]
    return "for example " + ", ".join(shown)


def drop_warnings(manifest: Manifest, directory: Path | None) -> list[str]:
    """A sentence for each reason that rejects over 5 % of the set, with examples.

    They are those of `rejected.jsonl` in `directory`; without it there are none.
    """
    source = manifest.source
    shares = large_shares(source.get("dropped", {}), source.get("read", 0), percent=_WARNED_PERCENT)
    wanted = {share.reason for share in shares}
    found = _examples_of(directory, wanted) if directory is not None and wanted else {}
    return [
        f"{share}"
        + (f": {examples(found[share.reason])}" if share.reason in found else "")
        + (f". {OPTION_FOR[share.reason]}" if share.reason in OPTION_FOR else "")
        for share in shares
    ]


def _examples_of(directory: Path, wanted: set[str]) -> dict[str, list[tuple[str, str]]]:
    """Up to three (id, detail) of each reason."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in _lines(directory / REJECTED_NAME):
        one = found.setdefault(line[1], []) if line[1] in wanted else None
        if one is not None and len(one) < _SHOWN:
            one.append((line[0], line[2]))
    return found


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """(id, reason, detail) of each line that can be read; the file may be missing."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                item = parse_json(line)
                yield str(item["source_id"]), str(item["reason"]), str(item["detail"])
    except (OSError, ValueError, KeyError, TypeError):
        return
