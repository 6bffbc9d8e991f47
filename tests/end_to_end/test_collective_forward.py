"""Evaluation where the forward pass is collective: no hang, equal bytes, disjoint shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collective_forward import evaluate
from harness import launched
from packed import packed_set


def facts_of(out: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"rank-{rank}.json").read_text())
    return found


def test_two_ranks_with_an_odd_number_of_batches(tmp_path: Path) -> None:
    """25 samples in 7 batches of 4: rank 1 has none in the last round and takes part in it."""
    shards, alone, both = (tmp_path / name for name in ("shards", "alone", "both"))
    for directory in (shards, alone, both):
        directory.mkdir()
    packed_set(shards)
    evaluate(shards, alone)
    done = launched("tests/end_to_end/collective_forward.py", str(shards), str(both))
    assert done.returncode == 0, done.stderr

    ranks = [facts_of(both, rank) for rank in range(2)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    assert [rank["passes"] for rank in ranks] == [4, 4]
    assert facts_of(alone, 0)["passes"] == 7
    # Each rank computed its share, and the shares are disjoint: batches 0, 2, 4, 6 and 1, 3, 5.
    in_order = facts_of(alone, 0)["keys"]
    batches = [in_order[start : start + 4] for start in range(0, 25, 4)]
    for number, rank in enumerate(ranks):
        assert rank["keys"] == [key for batch in batches[number::2] for key in batch]
        assert rank["per_rank"] == [13, 12]
    assert not set(ranks[0]["keys"]) & set(ranks[1]["keys"])

    for kind in ("logits-{}.npy", "keys-{}.json"):
        expected = (alone / kind.format(0)).read_bytes()
        assert [(both / kind.format(rank)).read_bytes() for rank in range(2)] == [expected] * 2
