"""Pure arithmetic of splits and shards: counts, membership and order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

SPLITS = ("train", "val", "test")
# Ties of largest remainders go to the held-out splits first: they are the small ones.
_TIE_ORDER = ("test", "val", "train")

MAX_SAMPLES_PER_SHARD = 1000
_WANTED_SHARDS = 8
_MIN_SAMPLES_PER_SHARD = 32


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, as near to the proportions of `weights` as possible.

    Each quota is rounded down and the rest goes to the largest remainders (Hamilton's
    method); equal remainders in the order given. At least one weight must be positive.
    """
    scale = sum(weights)
    assert scale > 0, weights
    assert min(weights) >= 0, weights
    quotas = [total * weight / scale for weight in weights]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - quotas[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def split_counts(total: int, ratios: Mapping[str, int]) -> dict[str, int]:
    """How many of `total` samples of one label go to each split of `ratios` (train, val, test)."""
    names = [name for name in _TIE_ORDER if ratios[name] > 0]
    counts = dict(zip(names, largest_remainder(total, [ratios[n] for n in names]), strict=True))
    return {name: counts.get(name, 0) for name in SPLITS}


def split_by_hash(
    labels: Mapping[str, str], *, seed: int, ratios: Mapping[str, int]
) -> dict[str, str]:
    """Split keys with exact counts within each label; key -> split.

    `labels` maps key to label. Within a label, keys are sorted by sha256("SEED:KEY"); the first
    go to test, the next to val, the rest to train. So a key's split depends on the seed and on the
    keys of its own label, and not on the order of reading.
    """
    keys_of: dict[str, list[str]] = {}
    for key, label in labels.items():
        keys_of.setdefault(label, []).append(key)
    assignment: dict[str, str] = {}
    for keys in keys_of.values():
        keys.sort(key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        counts = split_counts(len(keys), ratios)
        start = 0
        for split in ("test", "val", "train"):
            for key in keys[start : start + counts[split]]:
                assignment[key] = split
            start += counts[split]
    return assignment


def packed_order(keys: Sequence[str]) -> list[str]:
    """The order of a split's samples in its shards: by a hash, so that classes are mixed."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"order:{key}".encode()).digest())


def shard_sizes(num_samples: int, samples_per_shard: int | None) -> list[int]:
    """Samples of each shard of a split; sizes differ by one at most, none is empty.

    With `samples_per_shard` no shard is larger. Without it, shards hold at most
    `MAX_SAMPLES_PER_SHARD`; a small split still gets 8, or as many as leave each at least 32
    samples (one for fewer than 64), so that permuting shards and mixing several has an effect.
    """
    if num_samples == 0:
        return []
    limit = samples_per_shard or MAX_SAMPLES_PER_SHARD
    num_shards = -(-num_samples // limit)
    if samples_per_shard is None:
        small = min(_WANTED_SHARDS, num_samples // _MIN_SAMPLES_PER_SHARD)
        num_shards = max(num_shards, small, 1)
    size, larger = divmod(num_samples, num_shards)
    return [size + 1] * larger + [size] * (num_shards - larger)
