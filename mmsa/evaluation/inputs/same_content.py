"""Which samples of one data set have the text or the picture of a sample of another one.

Keys begin with the name of their data set, and packing looks for duplicates inside one set. So
samples of two sets are compared by what they contain.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mmsa.data.manifest import Manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import UserError
from mmsa.labels import ClassMap

MOST_BYTES = 4 * 2**30  # of tars that are read: some ten seconds
# Shorter texts are often equal by chance ("so cute"); the search for duplicates has this limit too.
_MIN_CHARACTERS = 24

Place = tuple[str | os.PathLike[str], Manifest, Sequence[str]]  # directory, manifest, splits


def same_content(evaluated: Place, earlier: Place) -> NDArray[np.uint64]:
    """The key hashes of the samples of `evaluated` whose text or picture is also in `earlier`.

    Texts are equal if they differ in case and white space alone, and shorter ones do not count;
    pictures are equal if their bytes are, so both sets must be packed by the same settings. Near
    duplicates are not found. Raises `UserError` where the tars of `earlier` are larger than
    `MOST_BYTES`, and `ShardDamage` for one that is not as packed.
    """
    _, manifest, splits = earlier
    size = sum(shard.tar_bytes for name in splits for shard in manifest.splits[name].shards)
    if size > MOST_BYTES:
        raise UserError(
            f"the model was trained on the other data set {manifest.dataset}; its {size / 1e9:.1f} "
            f"GB are too many to be compared here, where {MOST_BYTES / 1e9:.1f} GB are the most"
        )
    known = {mark for _, marks in _marked(earlier) for mark in marks}
    found = [key for key, marks in _marked(evaluated) if not known.isdisjoint(marks)]
    return np.array(found, dtype=np.uint64)


def _marked(place: Place) -> Iterator[tuple[int, list[bytes]]]:
    """(key hash, digests of text and picture) of every sample."""
    directory, manifest, splits = place
    for split in splits:
        # All classes, also where there is one: which are used does not matter here.
        names = manifest.classes
        reader = SplitReader(directory, manifest, split, ClassMap(names, {n: n for n in names}))
        for shard, ordinal in reader.places():
            sample = reader.read(shard, ordinal)
            marks = []
            if sample.has_image:
                marks.append(hashlib.blake2b(sample.image, digest_size=16).digest())
            text = " ".join(sample.text.casefold().split())
            if len(text) >= _MIN_CHARACTERS:
                marks.append(
                    hashlib.blake2b(text.encode(), digest_size=16, person=b"text").digest()
                )
            yield sample.key_hash, marks
