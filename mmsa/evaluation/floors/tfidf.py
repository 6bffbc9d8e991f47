"""TF-IDF with logistic regression, on the text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.floors.majority import numbered
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics

# Inverse strength of the L2 penalty, two values per decade.
C_GRID: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_MAX_ITERATIONS = 2000
_FEW_CLASSES = 10  # all features are used
_COEFFICIENTS = 2_000_000  # features x classes, with more classes
_LEAST_FEATURES = 1_000
_LEAST_PROBABILITY = 1e-12  # of a class missing from train, so that logits and loss are finite


@dataclass(frozen=True)
class TfidfFloor:
    """The result of `tfidf_floor`: the chosen `c`, and `val_weighted_f1` for each C of the grid."""

    predictions: Predictions
    metrics: dict[str, Any]
    c: float
    val_weighted_f1: dict[float, float]
    num_features: int


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

    Vocabulary and classifier are fitted on train only; C is the value of `c_grid` with the best
    weighted F1 on val, the smallest of equal ones. Labels are indices into `label_names`.

    With more than 10 classes only the most frequent words and pairs are features (2,000 for 1,000
    classes): the optimizer keeps 25 numbers per feature and class, which are 0.4 GB then.

    Raises `UserError` if train has a single class, or no word that occurs in two texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if len(set(train_labels)) < 2:
        raise UserError("the train split has a single class; a classifier needs at least two")
    limit = None
    if len(label_names) > _FEW_CLASSES:
        limit = max(_LEAST_FEATURES, _COEFFICIENTS // len(label_names))
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=limit
    )
    try:
        train_features = vectorizer.fit_transform(train_texts)
    except ValueError as error:
        raise UserError(
            f"cannot compute TF-IDF features of {len(train_texts)} training texts ({error}); at "
            "least one word must occur in two of them"
        ) from None
    val_features = vectorizer.transform(val_texts)
    best: Any = None  # one model at a time: each has a number per feature and class
    scores: dict[float, float] = {}
    for c in sorted(c_grid):
        model = LogisticRegression(C=c, solver="lbfgs", max_iter=_MAX_ITERATIONS)
        # The vectors are short: BLAS threads would mostly wait for each other (30 times the CPU
        # time on a busy machine), and their number would change the last digits.
        with threadpool_limits(1, user_api="blas"):
            model.fit(train_features, train_labels)
        val_predictions = numbered(
            val_labels, _log_probs(model, val_features, label_names), label_names
        )
        scores[c] = compute_metrics(val_predictions)["weighted"]["f1"]
        if best is None or scores[c] > scores[best.C]:  # ties: the smallest C
            best = model
    logits = _log_probs(best, vectorizer.transform(test_texts), label_names)
    predictions = numbered(test_labels, logits, label_names)
    return TfidfFloor(
        predictions, compute_metrics(predictions), best.C, scores, train_features.shape[1]
    )


def _log_probs(model: Any, features: Any, label_names: Sequence[str]) -> NDArray[np.float64]:
    """Log-probabilities (N, C), with a column for every label, even those missing from train."""
    probs = np.zeros((features.shape[0], len(label_names)))
    probs[:, model.classes_] = model.predict_proba(features)
    return np.asarray(np.log(np.maximum(probs, _LEAST_PROBABILITY)))
