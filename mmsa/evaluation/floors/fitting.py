"""All floors of one evaluation, fitted on train and chosen on val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsa.data.reader import SplitReader
from mmsa.evaluation.floors.majority import majority_predictions
from mmsa.evaluation.floors.tfidf import tfidf_floor
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.scores.metrics import Predictions

Texts = tuple[list[str], list[int]]  # the texts of a split and their labels


@dataclass(frozen=True)
class Floors:
    """The floors' predictions on the evaluated samples."""

    majority: Predictions
    tfidf: Predictions
    c: float


def fit_floors(
    train: Texts, val: Texts, facts: Sequence[SampleFacts], predictions: Predictions
) -> Floors:
    """Fit the floors on train, choose C on val, and predict the evaluated samples.

    Raises `UserError` if they cannot be fitted (such as a single class in train).
    """
    names = predictions.label_names
    majority = majority_predictions(train[1], predictions.labels.tolist(), names)
    texts = [sample.text for sample in facts]
    fitted = tfidf_floor(*train, *val, texts, predictions.labels.tolist(), names)
    return Floors(majority, fitted.predictions, fitted.c)


def read_texts(reader: SplitReader) -> tuple[list[str], list[int]]:
    """Texts and labels of a split, in the manifest's order; raises as the reader does."""
    samples = [reader.read(*place) for place in reader.places()]
    return [sample.text for sample in samples], [sample.label for sample in samples]
