"""The labels that a sample's text and image have each on their own, next to the label of the pair.

MVSA's annotators labelled text and image apart; packing keeps both as `text_label` and
`image_label` in `key.json` (docs/shard-format.md). Other sets have none, or have them for some
samples only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mmsa.data.reader import SplitReader
from mmsa.labels import ClassMap

MODALITIES = ("text", "image")  # the order of a batch's `modality_labels`
NO_LABEL = -1
_MOST_READ = 1000  # samples of a split that are looked at


def modality_labels(meta: dict[str, Any], classes: ClassMap) -> list[int]:
    """The model's labels of text and image in a sample's JSON, `NO_LABEL` where there is none.

    Classes are merged and left out as those of the pair are: a label of a class that the model does
    not know counts as none.
    """
    labels = []
    for modality in MODALITIES:
        name = meta.get(f"{modality}_label")
        label = classes.label_of(name) if isinstance(name, str) else None
        labels.append(NO_LABEL if label is None else label)
    return labels


def shares_with_labels(reader: SplitReader, classes: ClassMap) -> dict[str, float]:
    """Modality -> share of the samples of a split, in 0 to 1, that have a label of it on its own.

    Reads samples at equal distances, 1,000 at most, the same on every rank. An empty split has
    shares of 0.
    """
    places = list(reader.places()) if len(reader) <= _MOST_READ else _spread(reader)
    found = np.array(
        [modality_labels(reader.read(*place).meta, classes) for place in places], dtype=np.int64
    ).reshape(-1, len(MODALITIES))
    shares = (found != NO_LABEL).mean(axis=0) if len(found) else np.zeros(len(MODALITIES))
    return dict(zip(MODALITIES, shares.tolist(), strict=True))


def _spread(reader: SplitReader) -> list[tuple[int, int]]:
    """(shard, ordinal) of `_MOST_READ` samples at equal distances."""
    ends = np.cumsum(reader.sizes)
    positions = np.arange(_MOST_READ) * len(reader) // _MOST_READ
    shards = np.searchsorted(ends, positions, side="right")
    ordinals = positions - (ends - reader.sizes)[shards]
    return list(zip(shards.tolist(), ordinals.tolist(), strict=True))
