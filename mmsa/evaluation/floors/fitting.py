"""All floors of one evaluation, fitted on train and chosen on val."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmsa.data.reader import SplitReader
from mmsa.evaluation.floors.majority import majority_predictions
from mmsa.evaluation.floors.tfidf import tfidf_floor
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.inputs.trained_on import trained_manifest
from mmsa.evaluation.scores.metrics import Predictions

Texts = tuple[list[str], list[int]]  # the texts of a split and their labels


@dataclass(frozen=True)
class FittedOn:
    """The shards whose train and val splits the floors were fitted on, where that needs saying."""

    dataset: str
    shards_digest: str
    same_as_model: bool


@dataclass(frozen=True)
class Floors:
    """The floors' predictions on the evaluated samples.

    `fitted_on` is None on the shards that the model was trained on: both saw the same train split.
    """

    majority: Predictions
    tfidf: Predictions
    c: float
    fitted_on: FittedOn | None = None


def floors_of(target: EvalTarget, facts: Sequence[SampleFacts], predictions: Predictions) -> Floors:
    """The floors of a target, fitted on the shards that its model was trained on.

    A floor has to know what the model knows and no more. Where those shards are not at their place
    any more, the evaluated ones have to do, and `fitted_on` says so. Raises as `fit_floors` does.
    """
    shards, manifest = target.shards, target.manifest
    fitted_on = None
    if target.on_other_data:
        trained = target.export.config.data.shards
        found = trained_manifest(trained, target.export.facts.get("shards_digest"))
        if found is not None:
            shards, manifest = str(trained), found
        fitted_on = FittedOn(manifest.dataset, manifest.digest, found is not None)
    classes = target.export.class_map(manifest.classes)
    train, val = (
        read_texts(SplitReader(shards, manifest, name, classes)) for name in ("train", "val")
    )
    return replace(fit_floors(train, val, facts, predictions), fitted_on=fitted_on)


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
