"""Slices: parts of a split, by facts about the samples, on which a model may differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions

Mask = NDArray[np.bool_]

TALL = 1.2  # an image is tall from this height over width: 6 : 5
_URL = re.compile(r"https?://|www\.|\bt\.co/|\bURL\b", re.I)
_MENTION = re.compile(r"(?<!\w)@\w")


def slice_masks(facts: Sequence[SampleFacts]) -> dict[str, Mask]:
    """Slice name -> mask of its samples (N,). A limit computed from the data is in the name.

    The limits of text length and image size are the medians of this split. Packing reduces larger
    images to one short side, which is then often the median: the small images are those that were
    smaller to begin with. Slices without samples, or with all of them, are left out.
    """
    lengths = np.array([len(sample.text) for sample in facts])
    short_sides = np.array([min(sample.width, sample.height) for sample in facts])
    length, side = int(np.median(lengths)), int(np.median(short_sides))
    both = np.array([bool(sample.text_label and sample.image_label) for sample in facts])
    agree = np.array([sample.text_label == sample.image_label for sample in facts])
    url = np.array([bool(_URL.search(sample.text)) for sample in facts])
    mention = np.array([bool(_MENTION.search(sample.text)) for sample in facts])
    tall = np.array([sample.height >= TALL * sample.width > 0 for sample in facts])
    masks = {  # these names are keys of metrics.json
        "text and image label agree": both & agree,
        "text and image label conflict": both & ~agree,
        "with URL": url,
        "without URL": ~url,
        "with mention": mention,
        "without mention": ~mention,
        f"short text (up to {length} characters)": lengths <= length,
        f"long text (over {length} characters)": lengths > length,
        f"small picture (short side under {side} px)": short_sides < side,
        f"large picture (short side of {side} px and more)": short_sides >= side,
        "tall picture": tall,
        "wide or square picture": ~tall,
    }
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def part(predictions: Predictions, mask: Mask) -> Predictions:
    """The predictions of the samples in `mask` (N,)."""
    rows = np.flatnonzero(mask)
    keys = [predictions.keys[row] for row in rows]
    return Predictions(
        keys, predictions.labels[rows], predictions.logits[rows], predictions.label_names
    )
