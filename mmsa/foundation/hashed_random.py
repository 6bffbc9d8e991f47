"""Random numbers and permutations as a pure function of a key (SplitMix64).

numpy and torch may change the streams of their generators between versions. The order of the
samples must be the same after an upgrade, so it cannot come from them.
Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[np.int64]]
KeyArray = np.ndarray[Any, np.dtype[np.uint64]]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def stream_key(*parts: int | str) -> int:
    """A 64-bit number that depends on all parts: the seed of an independent stream."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix64(values: KeyArray) -> KeyArray:
    """The SplitMix64 finalizer, a bijection of 64-bit numbers, elementwise."""
    mixed = values.astype(np.uint64, copy=True)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_MIX_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MIX_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def permutation(size: int, key: int) -> IntArray:
    """A permutation of `range(size)`, (size,), that depends only on `size` and `key`.

    Sorting the hashes of distinct numbers gives a permutation without ties, because the hash is a
    bijection.
    """
    numbers = np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key & _MASK)
    return np.argsort(mix64(numbers)).astype(np.int64)


def uniforms(key: int, count: int) -> list[float]:
    """`count` numbers in [0, 1) that depend only on `key`; used for augmentation."""
    numbers = [(number * _GOLDEN + key) & _MASK for number in range(1, count + 1)]
    return [_mixed(number) / (1 << 53) for number in numbers]


def _mixed(value: int) -> int:
    """The upper 53 bits of `mix64` of one number, four times as fast as with numpy."""
    value ^= value >> 30
    value = value * _MIX_1 & _MASK
    value ^= value >> 27
    value = value * _MIX_2 & _MASK
    return (value ^ value >> 31) >> 11
