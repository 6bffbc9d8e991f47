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

from shards.duplicates.buckets import Keys, buckets_of, join_buckets
from shards.duplicates.joined import Ints, Joined

if TYPE_CHECKING:
    from PIL import Image

HASH_BITS = 256
NEAR_BITS = 60  # the largest distance of duplicates
_SIDE_PX = 64  # what imagehash's phash reduces to for 16 x 16 frequencies
_FLAT_SPREAD = 4  # grey levels; a smaller spread leaves a hash nothing to tell images apart by
_PHASH_BYTES = HASH_BITS // 8
HASH_BYTES = _PHASH_BYTES + 1 + 8
_TILE = 2048  # fingerprints compared with as many others at a time: 16 MiB
MOST_COMPARED = 50_000  # different fingerprints of which every two are compared
_SAMPLES = (72, 200)  # at least, and at most where there are fewer fingerprints
_SAMPLED = 72_000_000  # fingerprints in all samples between these
_MORE_BITS = 8  # of a sample, for fingerprints that agree with too many others in fewer
_MOST_BITS = 40
_HEAVY = 64  # too many

Codes = Keys  # fingerprints (n, 4): 256 bits each


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
    """Pairs of positions in `hashes` that, joined transitively, give the groups of duplicates.

    Duplicates are equal, or at most `NEAR_BITS` apart and neither of them flat. An empty hash has
    no duplicate. Only positions that duplicates connect are joined. Among at most `MOST_COMPARED`
    different hashes, all duplicates are found; among more, those that `_join_sampled` finds.
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
    positions = np.array([position for _, position in textured], dtype=np.int64)
    packed = np.frombuffer(b"".join(c[:_PHASH_BYTES] for c, _ in textured), dtype=np.uint64)
    codes = packed.reshape(-1, HASH_BITS // 64)
    joined = Joined(len(hashes))
    search = _join_compared if len(codes) <= MOST_COMPARED else _join_sampled
    search(codes, positions, joined)
    yield from joined.links()


def _join_compared(codes: Codes, positions: Ints, joined: Joined) -> None:
    """Compare every two of `codes`: matrix products of small integers, exact in float32."""
    bits = np.unpackbits(codes.view(np.uint8), axis=1)  # (n, 256)
    signs = bits.astype(np.float32) * 2 - 1
    nearest = HASH_BITS - 2 * NEAR_BITS  # of signs, the product is 256 - 2 x distance
    for top in range(0, len(signs), _TILE):
        for left in range(top, len(signs), _TILE):
            product = signs[top : top + _TILE] @ signs[left : left + _TILE].T
            rows, columns = np.nonzero(product >= nearest)
            joined.join(positions[rows + top], positions[columns + left])


def _join_sampled(codes: Codes, positions: Ints, joined: Joined) -> None:
    """Compare those of `codes` that agree in all bits of some sample (Indyk and Motwani, 1998).

    Codes that differ in few bits agree in a sample of them more often than others do. A sample has
    about as many bits as tell apart so many codes, and more where codes agree with many others.
    docs/splits.md has the share of pairs that are found, by their distance. Each is verified.
    """
    rng = np.random.default_rng(0)  # fixed: the groups are the same each time
    bits = np.unpackbits(codes.view(np.uint8), axis=1).T.copy()  # (256, n)
    length = len(codes).bit_length() - 1

    words = [np.ascontiguousarray(word) for word in codes.T]

    def alike(one: Ints, other: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        # A word at a time: most pairs are too far apart before the last.
        found = np.zeros(len(one), dtype=bool)
        left, apart = np.arange(len(one)), np.zeros(len(one), dtype=np.uint16)
        for word in words:
            apart = apart + np.bitwise_count(word[one[left]] ^ word[other[left]])
            near = apart <= NEAR_BITS
            left, apart = left[near], apart[near]
        found[left] = True
        return found

    for _ in range(min(max(_SAMPLES[0], _SAMPLED // len(codes)), _SAMPLES[1])):
        sample = rng.permutation(HASH_BITS)
        rows = np.arange(len(codes))
        for used in range(length, _MOST_BITS + 1, _MORE_BITS):
            keys = _agreeing(bits[sample[:used]], rows)
            last = used + _MORE_BITS > _MOST_BITS
            buckets = buckets_of(keys, rows, len(codes))
            heavy = join_buckets(buckets, positions, alike, joined, None if last else _HEAVY)
            rows = np.unique(heavy.rows)
            if not len(rows):
                break


def _agreeing(bits: np.ndarray[Any, np.dtype[np.uint8]], rows: Ints) -> Keys:
    """The bits (k, n) of each of `rows` as one number, from its highest bit on."""
    chosen = bits if len(rows) == bits.shape[1] else bits[:, rows]
    packed = np.packbits(chosen, axis=0)
    keys = np.zeros(len(rows), dtype=np.uint64)
    for place, byte in enumerate(packed):
        keys |= byte.astype(np.uint64) << np.uint64(56 - 8 * place)
    return keys
