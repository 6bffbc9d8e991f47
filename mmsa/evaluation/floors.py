"""What a model must beat: the majority class, and TF-IDF with logistic regression on text alone.

    python -m mmsa.evaluation.floors SHARDS [--split val|test]

fits on train, chooses on val and prints a classification report of each floor. Nothing is chosen on
test, but to print it is to look at it: the default is val. `evaluate.py` prints both floors beside
the model, for the model's own classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.evaluation.metrics import Predictions, compute_metrics
from mmsa.evaluation.report import classification_report_text
from mmsa.labels import class_map

# Inverse strength of the L2 penalty, two values a decade.
C_GRID: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MAX_ITERATIONS = 2000
_LEAST_PROBABILITY = 1e-12  # of a class that training has not seen: finite logits, finite loss


@dataclass(frozen=True)
class TfidfFloor:
    """The outcome of `tfidf_floor`: `val_weighted_f1` by each C of the grid, `c` the one chosen."""

    predictions: Predictions
    metrics: dict[str, Any]
    c: float
    val_weighted_f1: dict[float, float]
    num_features: int


def majority_predictions(
    train_labels: Sequence[int], test_labels: Sequence[int], label_names: Sequence[str]
) -> Predictions:
    """The most frequent class of train for every sample; of equally frequent ones the first.

    The logits are the logarithms of the class shares of train, each class counted once more than
    it occurs, so that the loss is finite too.
    """
    counts = np.bincount(np.asarray(train_labels, dtype=np.int64), minlength=len(label_names)) + 1
    logits = np.tile(np.log(counts / counts.sum()), (len(test_labels), 1))  # (N, C)
    return _numbered(test_labels, logits, label_names)


def majority_floor(
    train_labels: Sequence[int], test_labels: Sequence[int], label_names: Sequence[str]
) -> dict[str, Any]:
    """The metrics (see `compute_metrics`) of answering with the most frequent class of train."""
    return compute_metrics(majority_predictions(train_labels, test_labels, label_names))


def tfidf_floor(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    val_texts: Sequence[str],
    val_labels: Sequence[int],
    test_texts: Sequence[str],
    test_labels: Sequence[int],
    label_names: Sequence[str],
    *,
    c_grid: Sequence[float] = C_GRID,
) -> TfidfFloor:
    """TF-IDF of word 1- and 2-grams (sublinear, min_df 2) and multinomial logistic regression.

    Vocabulary and classifier are fitted on train alone; C is the one of `c_grid` with the best
    weighted F1 on val, of equal ones the smallest. Labels count into `label_names`.

    Raises `UserError` where train has a single class or no word that two of its texts share.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    if len(set(train_labels)) < 2:
        raise UserError("the train split has a single class; a classifier needs at least two")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    try:
        train_features = vectorizer.fit_transform(train_texts)
    except ValueError as error:
        raise UserError(
            f"no TF-IDF features can be made of {len(train_texts)} training texts ({error}); "
            "at least one word must stand in two of them"
        ) from None
    val_features = vectorizer.transform(val_texts)
    models = {}
    scores: dict[float, float] = {}
    for c in sorted(c_grid):
        model = LogisticRegression(C=c, solver="lbfgs", max_iter=_MAX_ITERATIONS)
        models[c] = model.fit(train_features, train_labels)
        found = _numbered(val_labels, _log_probs(model, val_features, label_names), label_names)
        scores[c] = compute_metrics(found)["weighted"]["f1"]
    best = max(scores, key=scores.__getitem__)  # the first of equal ones: the smallest C
    logits = _log_probs(models[best], vectorizer.transform(test_texts), label_names)
    predictions = _numbered(test_labels, logits, label_names)
    return TfidfFloor(
        predictions, compute_metrics(predictions), best, scores, train_features.shape[1]
    )


def _log_probs(model: Any, features: Any, label_names: Sequence[str]) -> NDArray[np.float64]:
    """Log-probabilities (N, C) with a column for each label, also those that train has not."""
    probs = np.zeros((features.shape[0], len(label_names)))
    probs[:, model.classes_] = model.predict_proba(features)
    return np.asarray(np.log(np.maximum(probs, _LEAST_PROBABILITY)))


def _numbered(labels: Sequence[int], logits: Any, label_names: Sequence[str]) -> Predictions:
    keys = [f"{row:012d}" for row in range(len(labels))]
    return Predictions(keys, np.asarray(labels, dtype=np.int64), logits, tuple(label_names))


def read_texts(reader: SplitReader) -> tuple[list[str], list[int]]:
    """Texts and labels of a split, in the manifest's order; raises as the reader does."""
    samples = [reader.read(*place) for place in reader.places()]
    return [sample.text for sample in samples], [sample.label for sample in samples]


def main(argv: Sequence[str] | None = None) -> int:
    """Print both floors of packed shards; returns the exit code (2 for what a user can mend)."""
    parser = argparse.ArgumentParser(
        prog="python -m mmsa.evaluation.floors",
        description="Majority class and TF-IDF with logistic regression, fitted on train.",
    )
    parser.add_argument("shards", help="directory made by `python -m shards pack`")
    parser.add_argument("--split", default="val", help="val (default) or test: reported on")
    arguments = parser.parse_args(argv)
    try:
        _print_floors(arguments.shards, arguments.split)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _print_floors(directory: str, split: str) -> None:
    manifest = load_manifest(directory)
    classes = class_map(manifest.classes, None)
    train, val, reported = (
        read_texts(SplitReader(directory, manifest, name, classes))
        for name in ("train", "val", split)
    )
    print(f"{manifest.dataset}, protocol {manifest.protocol.name} {manifest.protocol.hash[:12]}")
    print(f"train {len(train[0])}, val {len(val[0])}, reported on: {split} {len(reported[0])}\n")
    majority = majority_predictions(train[1], reported[1], manifest.classes)
    print(f"majority class\n{classification_report_text(majority)}")
    floor = tfidf_floor(*train, *val, *reported, manifest.classes)
    grid = ", ".join(f"{c:g}: {score:.4f}" for c, score in floor.val_weighted_f1.items())
    print(f"TF-IDF and logistic regression: {floor.num_features} features; C = {floor.c:g}")
    print(f"weighted F1 on val by C: {grid}")
    if split == "val":
        print("C was chosen on this very split: the figures below are too good")
    print(classification_report_text(floor.predictions))


if __name__ == "__main__":
    raise SystemExit(main())
