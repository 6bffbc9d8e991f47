"""The samples that a page shows: the most confident errors, and the most uncertain ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmsa.data.members import Content
from mmsa.data.reader import SplitReader
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions, probabilities, rounded

MAX_ERRORS = 240
MAX_UNCERTAIN = 60
_SIDE_PX = 160
_QUALITY = 70


def chosen(predictions: Predictions, temperature: float = 1.0) -> list[tuple[int, str]]:
    """(row, kind) of the shown samples; `kind` is error or uncertain, a row stands once.

    Errors are taken from every pair of true and predicted class in turn, the most confident first,
    so that a rare confusion can be looked at beside a frequent one. Uncertain are the samples,
    right or wrong, whose two likeliest classes are closest.
    """
    probs = probabilities(np.asarray(predictions.logits, dtype=np.float64) / temperature)
    confidence = probs.max(axis=1)
    predicted = predictions.predicted
    wrong = np.flatnonzero(predicted != predictions.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    turn: dict[tuple[int, int], int] = {}
    turns = []
    for row in wrong.tolist():
        pair = (int(predictions.labels[row]), int(predicted[row]))
        turns.append(turn.setdefault(pair, 0))
        turn[pair] += 1
    errors = wrong[np.argsort(turns, kind="stable")][:MAX_ERRORS]
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
    """What the page knows of each shown sample; `private` leaves text and picture out."""
    names, predicted = predictions.label_names, predictions.predicted
    probs = probabilities(np.asarray(predictions.logits, dtype=np.float64) / temperature)
    found = []
    for row, kind in chosen(predictions, temperature):
        one = facts[row]
        card: dict[str, Any] = {
            "kind": kind,
            "key": one.key,
            "true": names[predictions.labels[row]],
            "predicted": names[predicted[row]],
            "probabilities": [float(f"{value:.4f}") for value in rounded(probs[row].tolist())],
            "text_label": one.text_label,
            "image_label": one.image_label,
        }
        if not private:
            card |= {"text": one.text, "picture": thumbnail(reader.read(*one.place).image)}
        found.append(card)
    return found


def thumbnail(content: Content) -> str | None:
    """A data URL of a small JPEG; None where the bytes are no picture."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (2 * _SIDE_PX, 2 * _SIDE_PX))  # decodes a large JPEG smaller
            picture = opened.convert("RGB")
    except OSError:
        return None
    picture.thumbnail((_SIDE_PX, _SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
