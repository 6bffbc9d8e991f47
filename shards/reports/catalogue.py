"""The list of `python -m shards protocols`: each protocol, its source, its fixed counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from shards.splits import published
from shards.splits.protocols import PROTOCOLS, protocol_hash

_CLMLF = (
    "Li et al., CLMLF: A Contrastive Learning and Multi-Layer Fusion Method for Multimodal "
    "Sentiment Detection, Findings of NAACL 2022"
)
_TIB10 = (
    "Cheema et al., A Fair and Comprehensive Comparison of Multimodal Tweet Sentiment Analysis "
    "Methods, MMPT workshop at ICMR 2021"
)
_SOURCES = {"clmlf": _CLMLF, "tib10:K": _TIB10}


@dataclass(frozen=True)
class FixedSplit:
    """A published split of one data set; `hash` is that in the manifest of a complete pack."""

    dataset: str
    name: str
    hash: str
    counts: dict[str, dict[str, int]]  # split -> class -> samples


@dataclass(frozen=True)
class Entry:
    """One protocol as `--protocol` takes it."""

    name: str
    version: int
    about: str
    source: str
    lists: tuple[FixedSplit, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)


def catalogue() -> list[Entry]:
    """All protocols. The ten folds of a data set are listed each."""
    entries = []
    for name, about in PROTOCOLS.items():
        lists: list[FixedSplit] = []
        for dataset in published.DATASETS:
            if name == "clmlf":
                lists.append(_fixed(dataset, name, published.clmlf(dataset)))
            elif name == "tib10:K":
                lists += [
                    _fixed(dataset, f"tib10:{fold}", published.tib10(dataset, fold))
                    for fold in range(1, published.NUM_FOLDS + 1)
                ]
        entries.append(Entry(name, 1, about, _SOURCES.get(name, ""), tuple(lists)))
    return entries


def _fixed(dataset: str, name: str, splits: dict[str, str]) -> FixedSplit:
    keys = {f"{dataset}-{source_id}": split for source_id, split in splits.items()}
    return FixedSplit(dataset, name, protocol_hash(keys), published.class_counts(dataset, splits))
