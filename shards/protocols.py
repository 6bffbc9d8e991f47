"""Named rules for splits. What a protocol gave is known by its hash, whatever made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from mmsa.data.manifest import ProtocolInfo
from mmsa.errors import UserError
from shards.splits import SPLITS, split_by_hash

PROTOCOLS = ("random",)


def parse_ratios(text: str) -> dict[str, int]:
    """Read "8:1:1" as train, val, test. Raises `UserError` for anything else or no train part."""
    parts = text.split(":")
    if len(parts) != len(SPLITS) or not all(p.isascii() and p.isdigit() for p in parts):
        raise UserError(f"--ratios {text} must be three whole numbers, train:val:test, as in 8:1:1")
    ratios = dict(zip(SPLITS, (int(part) for part in parts), strict=True))
    if ratios["train"] == 0:
        raise UserError(f"--ratios {text} leaves nothing to train on; train must be at least 1")
    return ratios


def protocol_hash(assignment: Mapping[str, str]) -> str:
    """sha256 over the sorted lines "SPLIT<TAB>KEY<LF>" of key -> split, in hex."""
    lines = sorted(f"{split}\t{key}\n" for key, split in assignment.items())
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def assign_splits(
    protocol: str, labels: Mapping[str, str], *, seed: int, ratios: Mapping[str, int]
) -> tuple[dict[str, str], ProtocolInfo]:
    """Split the keys of `labels` (key -> label) by `protocol`.

    Returns key -> split and what the manifest says of it. Raises `UserError` for an unknown name.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
    assignment = split_by_hash(labels, seed=seed, ratios=ratios)
    info = ProtocolInfo(
        name=protocol,
        version=1,
        settings={"seed": seed, "ratios": {name: ratios[name] for name in SPLITS}},
        hash=protocol_hash(assignment),
    )
    return assignment, info
