"""Slices: parts of a split on which a model may do better or worse, by facts of the samples."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions

Mask = NDArray[np.bool_]

TALL = 1.2  # height over width from which a picture counts as tall: 6 : 5
_URL = re.compile(r"https?://|www\.|\bt\.co/|\bURL\b", re.I)
_MENTION = re.compile(r"(?<!\w)@\w")


def slice_masks(facts: Sequence[SampleFacts]) -> dict[str, Mask]:
    """Name -> which samples (N,) are in it; names say the limit where it comes from the data.

    The limits of text length and picture size are the medians of this split. Packing reduces larger
    pictures to one short side, which is then the median: small are those that were smaller before.
    Slices that are empty, or that hold every sample, are left out: they say nothing.
    """
    lengths = np.array([len(one.text) for one in facts])
    short_sides = np.array([min(one.width, one.height) for one in facts])
    length, side = int(np.median(lengths)), int(np.median(short_sides))
    both = np.array([bool(one.text_label and one.image_label) for one in facts])
    agree = np.array([one.text_label == one.image_label for one in facts])
    url = np.array([bool(_URL.search(one.text)) for one in facts])
    mention = np.array([bool(_MENTION.search(one.text)) for one in facts])
    tall = np.array([one.height >= TALL * one.width > 0 for one in facts])
    masks = {
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
