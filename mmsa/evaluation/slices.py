"""Slices: parts of a split on which a model may do better or worse, by facts of the samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.bootstrap import Bootstrap
from mmsa.evaluation.metrics import Predictions
from mmsa.evaluation.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.score_table import as_json, score_table

Mask = NDArray[np.bool_]

SLICE_SCORES = ("accuracy", "macro_f1", "weighted_f1", "loss")
SLICE_RESAMPLES = 2_000
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


def slice_scores(predictions: Predictions, facts: Sequence[SampleFacts]) -> dict[str, Any]:
    """Slice -> `num_samples` and `SLICE_SCORES` with intervals, resampled within the slice."""
    groups = groups_of(facts)
    found = {}
    for name, mask in slice_masks(facts).items():
        bootstrap = Bootstrap.of(groups[mask], resamples=SLICE_RESAMPLES)
        table = score_table(part(predictions, mask), bootstrap, areas=False)
        scores = as_json({score: table[score] for score in SLICE_SCORES})
        found[name] = {"num_samples": int(mask.sum()), "scores": scores}
    return found
