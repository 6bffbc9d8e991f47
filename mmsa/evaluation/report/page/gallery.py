"""The samples shown on the page: the most confident errors and the most uncertain samples."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmsa.data.decoding.posted_images import FORMATS
from mmsa.data.members import Content
from mmsa.data.reader import SplitReader
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions, probabilities, rounded

MAX_ERRORS = 240
MAX_UNCERTAIN = 60
MAX_BARS = 10  # classes with a probability on a card; of more, the most likely ones
_SIDE_PX = 160
_QUALITY = 70


def choose_samples(predictions: Predictions, temperature: float = 1.0) -> list[tuple[int, str]]:
    """(row, kind) of the samples shown; `kind` is "error" or "uncertain", each row occurs once.

    Errors are taken round-robin from all pairs of true and predicted class, the most confident
    first, so that rare confusions are shown as well as frequent ones. Uncertain samples, right or
    wrong, are those whose two most likely classes are closest.
    """
    probs = probabilities(predictions.logits, temperature)
    confidence = probs.max(axis=1)
    predicted = predictions.predicted
    wrong = np.flatnonzero(predicted != predictions.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    seen: Counter[tuple[int, int]] = Counter()  # errors so far of each (true, predicted)
    rounds = []
    for row in wrong.tolist():
        pair = (int(predictions.labels[row]), int(predicted[row]))
        rounds.append(seen[pair])
        seen[pair] += 1
    errors = wrong[np.argsort(rounds, kind="stable")][:MAX_ERRORS]
    errors = errors[np.argsort(-confidence[errors], kind="stable")]
    ordered = np.sort(probs, axis=1)
    margins = np.argsort(ordered[:, -1] - ordered[:, -2], kind="stable")
    shown = set(errors.tolist())
    uncertain = [row for row in margins.tolist() if row not in shown][:MAX_UNCERTAIN]
    return [(row, "error") for row in errors.tolist()] + [(row, "uncertain") for row in uncertain]


def cards(
    predictions: Predictions,
    facts: Sequence[SampleFacts],
    reader: SplitReader,
    *,
    temperature: float,
    private: bool,
) -> list[dict[str, Any]]:
    """The data of each sample shown; `private` leaves out text and image."""
    names, predicted = predictions.label_names, predictions.predicted
    probs = probabilities(predictions.logits, temperature)
    shown = []
    for row, kind in choose_samples(predictions, temperature):
        sample = facts[row]
        card: dict[str, Any] = {
            "kind": kind,
            "key": sample.key,
            "true": names[predictions.labels[row]],
            "predicted": names[predicted[row]],
            "text_label": sample.text_label,
            "image_label": sample.image_label,
        }
        classes = np.arange(len(names))
        if len(names) > MAX_BARS:
            classes = np.argsort(-probs[row], kind="stable")[:MAX_BARS]
            card["classes"] = classes.tolist()
        card["probabilities"] = [
            float(f"{value:.4f}") for value in rounded(probs[row, classes].tolist())
        ]
        if not private:
            card |= {"text": sample.text, "picture": thumbnail(reader.read(*sample.place).image)}
        shown.append(card)
    return shown


def thumbnail(content: Content) -> str | None:
    """A data URL of a small JPEG; None if the bytes are not an image."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            opened.draft("RGB", (2 * _SIDE_PX, 2 * _SIDE_PX))  # decodes large JPEGs smaller
            image = opened.convert("RGB")
    except OSError:
        return None
    image.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
