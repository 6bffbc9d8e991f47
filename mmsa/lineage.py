"""Where the weights of an export are from, beyond the run that wrote it.

`export.json` has `history`, one entry for each run that this one began from (`train.init_from`),
the oldest first, and `soup` if the weights are a mean of several exports. Both are there only where
there is something to say. Every entry names weights, configuration and training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HISTORY_KEY = "history"
SOUP_KEY = "soup"


@dataclass(frozen=True)
class TrainingData:
    """Packed data that weights were trained on: its digest, and where it was then.

    Either is None where an export of an early version does not say.
    """

    shards: str | None
    digest: str | None


def history_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that a run began from, the oldest first; `facts` are those of its export."""
    return [dict(entry) for entry in facts.get(HISTORY_KEY) or ()]


def soup_of(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a soup says about its ingredients; None for the export of a run."""
    found = facts.get(SOUP_KEY)
    return dict(found) if found else None


def training_data(facts: Mapping[str, Any], shards: str | None) -> list[TrainingData]:
    """All data that the weights of an export were trained on, its own first, each once.

    `shards` is where the export's configuration says that its own data is.
    """
    found = [TrainingData(shards, facts.get("shards_digest"))]
    found += [TrainingData(e.get("shards"), e.get("shards_digest")) for e in history_of(facts)]
    own, *others = found
    known = {own.digest}
    unique = [own]
    for data in others:
        if data.digest not in known:
            known.add(data.digest)
            unique.append(data)
    return unique


def merged_history(of_each: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of several histories, each weights once, in their order."""
    entries = [dict(entry) for history in of_each for entry in history]
    return list({entry.get("weights_sha256"): entry for entry in entries}.values())


def earlier_openings(facts: Mapping[str, Any], shards_digest: str) -> int:
    """How often the runs that this one began from had opened the test split of these shards."""
    counts = [entry.get("test_openings", {}) for entry in history_of(facts)]
    return sum(int(count.get(shards_digest, 0)) for count in counts)
