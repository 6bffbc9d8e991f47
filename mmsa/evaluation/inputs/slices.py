"""Slices: parts of a split, by facts about the samples, on which a model may differ."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions

Mask = NDArray[np.bool_]

HAS_BOTH = "has both text and image"
TALL = 1.2  # an image is tall from this height over width: 6 : 5
_URL = re.compile(r"https?://|www\.|\bt\.co/|\bURL\b", re.I)
_MENTION = re.compile(r"(?<!\w)@\w")


def slice_masks(facts: Sequence[SampleFacts]) -> dict[str, Mask]:
    """Slice name -> mask of its samples (N,). A limit computed from the data is in the name.

    The limits of text length and image size are the medians of this split. Packing reduces larger
    images to one short side, which is then often the median: the small images are those that were
    smaller to begin with. A sample without a text or an image is in no slice about it, and there
    are slices by what samples have. Slices without samples, or with all of them, are left out.
    """
    has_text = np.array([sample.has_text for sample in facts])
    has_image = np.array([sample.has_image for sample in facts])
    lengths = np.array([len(sample.text) for sample in facts])
    short_sides = np.array([min(sample.width, sample.height) for sample in facts])
    length = int(np.median(lengths[has_text])) if has_text.any() else 0
    side = int(np.median(short_sides[has_image])) if has_image.any() else 0
    both = np.array([bool(sample.text_label and sample.image_label) for sample in facts])
    agree = np.array([sample.text_label == sample.image_label for sample in facts])
    url = np.array([bool(_URL.search(sample.text)) for sample in facts])
    mention = np.array([bool(_MENTION.search(sample.text)) for sample in facts])
    tall = np.array([sample.height >= TALL * sample.width > 0 for sample in facts])
    masks = {  # these names are keys of metrics.json
        "text and image label agree": both & agree,
        "text and image label conflict": both & ~agree,
        "with URL": url,
        "without URL": has_text & ~url,
        "with mention": mention,
        "without mention": has_text & ~mention,
        f"short text (up to {length} characters)": has_text & (lengths <= length),
        f"long text (over {length} characters)": has_text & (lengths > length),
        f"small picture (short side under {side} px)": has_image & (short_sides < side),
        f"large picture (short side of {side} px and more)": has_image & (short_sides >= side),
        "tall picture": tall,
        "wide or square picture": has_image & ~tall,
        HAS_BOTH: has_text & has_image,
        "text only": has_text & ~has_image,
        "image only": has_image & ~has_text,
    }
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def part(predictions: Predictions, mask: Mask) -> Predictions:
    """The predictions of the samples in `mask` (N,)."""
    rows = np.flatnonzero(mask)
    keys = [predictions.keys[row] for row in rows]
    return Predictions(
        keys, predictions.labels[rows], predictions.logits[rows], predictions.label_names
    )
