"""How the search for duplicates grows with the number of samples: `benchmarks.packing --rows`.

Texts are made up like tweets: words by Zipf's law, 2 to 27 of them; one in ten is a copy with or
without a changed word, and one in fifty an automatic post in which numbers change. Fingerprints are
random with dependent bits, as those of photographs are, and some have a copy at a known distance.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from shards.duplicates.images import HASH_BITS, NEAR_BITS, image_pairs
from shards.duplicates.texts import text_pairs

_VOCABULARY = 400_000
_COPIED, _AUTOMATIC = 0.1, 0.02
DISTANCES = (5, 10, 16, 24, 32, 40, 48, 56, NEAR_BITS)
_FACTORS = 60  # that the bits of a fingerprint depend on
_BLOCK = 10_000


def tweets(count: int, seed: int = 0) -> list[str]:
    """`count` made-up tweets."""
    rng = np.random.default_rng(seed)
    weights = np.cumsum(1 / np.arange(3, _VOCABULARY + 3))
    lengths = np.clip(rng.normal(13, 5, count).round().astype(int), 2, 27)
    drawn = np.searchsorted(weights, rng.random(lengths.sum()) * weights[-1]).tolist()
    chances, numbers = rng.random((count, 2)).tolist(), rng.integers(1 << 30, size=count).tolist()
    made: list[str] = []
    start = 0
    for length, (kind, change), number in zip(lengths.tolist(), chances, numbers, strict=True):
        words = [f"w{word:x}" for word in drawn[start : start + length]]
        start += length
        if made and kind < _COPIED:
            words = made[number % len(made)].split()
            if change < 0.3:
                words[number % len(words)] = f"w{number:x}"
            words[:0] = ["RT", "@somebody"]
        elif kind < _COPIED + _AUTOMATIC:
            points, game = number % 10_000, number % 10
            words = f"i just scored {points} points in game{game} come and play with me".split()
            words.append(f"place{number % 1000}")
        made.append(" ".join(words))
    return made


def fingerprints(count: int, seed: int = 0) -> tuple[list[bytes], dict[int, list[tuple[int, int]]]]:
    """`count` made-up fingerprints; and by distance, the positions of up to 1,000 planted pairs."""
    rng = np.random.default_rng(seed)
    loads = rng.standard_normal((_FACTORS, HASH_BITS), dtype=np.float32)
    codes = np.concatenate(
        [
            np.packbits(rng.standard_normal((size, _FACTORS), dtype=np.float32) @ loads > 0, axis=1)
            for size in _sizes(count)
        ]
    )
    originals = iter(range(count // 2))
    planted: dict[int, list[tuple[int, int]]] = {}
    for distance in DISTANCES:
        planted[distance] = []
        for _ in range(min(1000, count // 40)):
            original = next(originals)
            flips = np.zeros(HASH_BITS, dtype=np.uint8)
            flips[rng.choice(HASH_BITS, distance, replace=False)] = 1
            codes[count // 2 + original] = codes[original] ^ np.packbits(flips)
            planted[distance].append((original, count // 2 + original))
    rest = bytes([255]) + bytes(8)  # a large spread of grey levels
    return [code.tobytes() + rest for code in codes], planted


def _sizes(count: int) -> Iterator[int]:
    for start in range(0, count, _BLOCK):
        yield min(_BLOCK, count - start)


def measured(rows: int) -> dict[str, Any]:
    """CPU seconds of both searches for `rows` samples, MiB at the most, and what was found.

    Memory is the peak of the process with the made-up samples in it, so measure ascending `rows`.
    """
    found: dict[str, Any] = {"rows": rows}
    texts = tweets(rows)
    started = time.process_time()
    found["texts_joined"] = len({position for _, position in text_pairs(texts)})
    found["texts_cpu_s"] = round(time.process_time() - started, 2)
    found["texts_mib"] = _peak_mib()
    del texts
    hashes, planted = fingerprints(rows)
    started = time.process_time()
    pairs = list(image_pairs(hashes))
    found["images_cpu_s"] = round(time.process_time() - started, 2)
    found["images_mib"] = _peak_mib()
    root = dict((member, root) for root, member in pairs)
    found["images_found"] = {
        distance: sum(root.get(a, a) == root.get(b, b) for a, b in of_distance) / len(of_distance)
        for distance, of_distance in planted.items()
    }
    return found


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
