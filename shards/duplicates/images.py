"""Near-duplicate images: each has a short fingerprint, and similar fingerprints are found.

The fingerprint is a perceptual hash: the signs of the 16 x 16 lowest frequencies of a cosine
transform around their median, 256 bits. Scaling or compressing an image again changes a few bits.
docs/splits.md has the measurements behind the 256 bits and the distance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 256
NEAR_BITS = 60  # the largest distance of duplicates
_SIDE_PX = 64  # what imagehash's phash reduces to for 16 x 16 frequencies
_FLAT_SPREAD = 4  # grey levels; a smaller spread leaves a hash nothing to tell images apart by
_PHASH_BYTES = HASH_BITS // 8
HASH_BYTES = _PHASH_BYTES + 1 + 8
_TILE = 2048  # fingerprints compared with as many others at a time: 16 MiB


def image_hash(image: Image.Image) -> bytes:
    """The fingerprint of a decoded image of any mode and size, `HASH_BYTES` long.

    32 bytes of hash; 1 byte, the standard deviation of the grey levels; 8 bytes that tell flat
    images apart by their colours and are zero for all others. About 0.3 ms for 256 x 340 pixels.
    Before and after reduction to short side 256 it differs in at most 10 bits for 999 of 1,000
    images, and in more for a few with hardly any contrast.
    """
    import imagehash
    from PIL import Image

    grey = image.convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    bits = imagehash.phash(grey, hash_size=16).hash
    spread = min(255, int(np.asarray(grey, dtype=np.float64).std()))
    colours = bytes(8)
    if spread < _FLAT_SPREAD:
        small = image.convert("RGB").resize((8, 8), Image.Resampling.BOX)
        colours = hashlib.sha256(small.tobytes()).digest()[:8]
    return np.packbits(bits.ravel()).tobytes() + bytes([spread]) + colours


def image_pairs(hashes: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in `hashes` that, joined transitively, give all groups of duplicates.

    Duplicates are equal, or at most `NEAR_BITS` apart and neither of them flat. The search compares
    every two different hashes by matrix products of integers below 2^24, exact in float32. An empty
    hash has no duplicate.
    """
    first_of: dict[bytes, int] = {}
    for position, content in enumerate(hashes):
        if not content:
            continue
        assert len(content) == HASH_BYTES, len(content)
        first = first_of.setdefault(content, position)
        if first != position:
            yield first, position
    textured = [(c, p) for c, p in first_of.items() if c[_PHASH_BYTES] >= _FLAT_SPREAD]
    if not textured:
        return
    positions = [position for _, position in textured]
    packed = np.frombuffer(b"".join(c[:_PHASH_BYTES] for c, _ in textured), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(-1, _PHASH_BYTES), axis=1)  # (N, 256)
    signs = bits.astype(np.float32) * 2 - 1
    nearest = HASH_BITS - 2 * NEAR_BITS  # of signs, the product is 256 - 2 x distance
    joined = np.arange(len(signs))  # position -> the smallest position that it is joined with
    for top in range(0, len(signs), _TILE):
        for left in range(top, len(signs), _TILE):
            product = signs[top : top + _TILE] @ signs[left : left + _TILE].T
            rows, columns = np.nonzero(product >= nearest)
            for one, other in _new_links(joined[rows + top], joined[columns + left]):
                low, high = sorted((joined[one], joined[other]))
                if low != high:
                    joined[joined == high] = low
                    yield positions[low], positions[high]


def _new_links(
    one: np.ndarray[Any, np.dtype[np.int64]], other: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The different pairs among (`one`, `other`), (N, 2): thousands of copies become a few."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    pairs = np.unique((low << 32 | high)[low != high])
    return np.stack([pairs >> 32, pairs & 0xFFFFFFFF], axis=1)
