"""Pictures that show the same: a short print of each picture, and which prints are near each other.

The print is a perceptual hash: the signs of the 16 x 16 lowest frequencies of a cosine transform
around their median, 256 bits. The same picture, scaled or compressed again, gives the same bits
within a few. Why 256 bits and which distance: docs/splits.md, measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 256
NEAR_BITS = 60  # prints that differ in at most so many bits are of twins
_SIDE_PX = 64  # what imagehash's phash reduces to for 16 x 16 frequencies
_FLAT_SPREAD = 4  # grey levels: below, a picture has no structure that a hash could tell apart
_HASH_BYTES = HASH_BITS // 8
PRINT_BYTES = _HASH_BYTES + 1 + 8
_TILE = 2048  # prints compared with as many others at a time: 16 MiB


def image_hash(picture: Image.Image) -> bytes:
    """The print of a decoded picture of any mode and size, `PRINT_BYTES` long.

    32 bytes of hash; 1 byte, the standard deviation of the grey levels; 8 bytes that tell flat
    pictures apart by their colours and are zero for all others. About 0.3 ms for 256 x 340 pixels.
    Taken before or after reduction to short side 256, it differs in at most 10 bits for 999 of
    1,000 pictures, and in more for a few of hardly any contrast.
    """
    import imagehash
    from PIL import Image

    grey = picture.convert("L").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX)
    bits = imagehash.phash(grey, hash_size=16).hash
    spread = min(255, int(np.asarray(grey, dtype=np.float64).std()))
    colours = bytes(8)
    if spread < _FLAT_SPREAD:
        small = picture.convert("RGB").resize((8, 8), Image.Resampling.BOX)
        colours = hashlib.sha256(small.tobytes()).digest()[:8]
    return np.packbits(bits.ravel()).tobytes() + bytes([spread]) + colours


def image_pairs(prints: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in `prints` that, joined transitively, join all twins.

    Twins are equal prints, and prints at most `NEAR_BITS` apart unless one of them is flat. The
    search compares every two different prints (matrix products of whole numbers below 2^24, exact
    in float32). An empty print has no twin.
    """
    first_of: dict[bytes, int] = {}
    for position, content in enumerate(prints):
        if not content:
            continue
        assert len(content) == PRINT_BYTES, len(content)
        first = first_of.setdefault(content, position)
        if first != position:
            yield first, position
    textured = [(c, p) for c, p in first_of.items() if c[_HASH_BYTES] >= _FLAT_SPREAD]
    if not textured:
        return
    positions = [position for _, position in textured]
    packed = np.frombuffer(b"".join(c[:_HASH_BYTES] for c, _ in textured), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(-1, _HASH_BYTES), axis=1)  # (N, 256)
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
