"""Scores from sums, and areas from counts, against scikit-learn on random predictions."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from made_up import random_predictions
from sklearn import metrics as reference

from mmsa.evaluation.scores.areas import area_scores, rankings
from mmsa.evaluation.scores.bootstrap import Bootstrap
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics, flat_metrics, probabilities
from mmsa.evaluation.scores.score_table import Score, as_json, score_table
from mmsa.evaluation.scores.sums import Sums, confidence_bins, scores_of_sums, summands


def values_of(predictions: Predictions) -> dict[str, float]:
    table = score_table(predictions, None)
    assert all(score.low is None and score.high is None for score in table.values())
    return {name: score.value for name, score in table.items() if score.value is not None}


@pytest.mark.parametrize(("num_classes", "seed"), [(2, 0), (3, 1), (3, 2), (7, 3)])
def test_scores_are_those_of_scikit_learn(num_classes: int, seed: int) -> None:
    predictions = random_predictions(500, num_classes, seed)
    true, predicted = predictions.labels, predictions.predicted
    probs = probabilities(predictions.logits)
    found = values_of(predictions)
    one_hot = np.eye(num_classes)[true]
    expected = {
        "accuracy": reference.accuracy_score(true, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(true, predicted),
        "mcc": reference.matthews_corrcoef(true, predicted),
        "loss": reference.log_loss(true, probs),
        "brier": reference.brier_score_loss(true, probs, scale_by_half=False),
        "roc_auc": reference.roc_auc_score(one_hot, probs, average="macro"),
        "pr_auc": reference.average_precision_score(one_hot, probs, average="macro"),
    }
    for average in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(reference, f"{name}_score")(true, predicted, average=average)
            expected[f"{average}_{name}"] = score
    for c in range(num_classes):
        for name in ("precision", "recall", "f1"):
            each = getattr(reference, f"{name}_score")(true, predicted, average=None)
            expected[f"{name}/class {c}"] = each[c]
        expected[f"roc_auc/class {c}"] = reference.roc_auc_score(true == c, probs[:, c])
        expected[f"pr_auc/class {c}"] = reference.average_precision_score(true == c, probs[:, c])
    assert set(found) == set(expected) | {"ece"}
    assert found == pytest.approx(expected | {"ece": found["ece"]}, rel=1e-9)
    same = flat_metrics(compute_metrics(predictions))
    assert {name: found[name] for name in same} == pytest.approx(same, rel=1e-9)


def test_areas_with_ties_are_those_of_scikit_learn() -> None:
    """Few different scores, and samples that occur zero to four times."""
    random = np.random.default_rng(4)
    labels = random.integers(0, 3, 200)
    probs = random.integers(0, 5, (200, 3)) / 8
    counts = random.integers(0, 5, (6, 200))
    counts[0, :150] = 0  # some of the first thresholds are of samples that were not drawn
    [found] = area_scores(rankings(probs, labels), ("a", "b", "c"), lambda: [counts])
    for r, c in np.ndindex(6, 3):
        name, weights = "abc"[c], counts[r]
        roc = reference.roc_auc_score(labels == c, probs[:, c], sample_weight=weights)
        pr = reference.average_precision_score(labels == c, probs[:, c], sample_weight=weights)
        assert found[f"roc_auc/{name}"][r] == pytest.approx(roc, abs=1e-12)
        assert found[f"pr_auc/{name}"][r] == pytest.approx(pr, abs=1e-12)
        assert found["roc_auc"][r] == pytest.approx(
            np.mean([found[f"roc_auc/{n}"][r] for n in "abc"]), abs=1e-12
        )


def four(confidences: list[float], right: list[bool]) -> Predictions:
    """Two classes; sample i is of the first and called so with `confidences[i]` if right."""
    logits = [[math.log(p / (1 - p)), 0.0] for p in confidences]
    labels = np.where(right, 0, 1)
    keys = [f"k{i}" for i in range(len(labels))]
    return Predictions(keys, labels, np.array(logits, dtype=np.float32), ("x", "y"))


def test_calibration_error_brier_and_loss_by_hand() -> None:
    # 0.62 and 0.64 share the bin (0.6, 0.667]: |1 - 0.62 + 0 - 0.64| = 0.26; 0.9 and 0.92 share
    # (0.867, 0.933]: |2 - 1.82| = 0.18. Together 0.44 of 4 samples.
    found = values_of(four([0.62, 0.64, 0.9, 0.92], [True, False, True, True]))
    assert found["ece"] == pytest.approx(0.11, abs=1e-7)
    brier = 2 * (0.38**2 + 0.64**2 + 0.1**2 + 0.08**2) / 4
    assert found["brier"] == pytest.approx(brier, abs=1e-7)
    loss = -math.log(0.62 * 0.36 * 0.9 * 0.92) / 4
    assert found["loss"] == pytest.approx(loss, abs=1e-7)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    edges = np.array([1e-9, 1 / 15, np.nextafter(2 / 15, 1), 0.999, 1.0])
    assert confidence_bins(edges).tolist() == [0, 0, 2, 14, 14]


def test_classes_that_do_not_occur() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 2, 0]]
    absent = Predictions(list("abcd"), np.array([0, 0, 2, 2]), logits, ("x", "y", "z"))
    table = score_table(absent, Bootstrap.of(np.arange(4), resamples=50, area_resamples=50))
    assert table["recall/y"].value == 0.0
    assert table["balanced_accuracy"].value == 0.75  # of the two classes that occur
    assert table["roc_auc/y"] == Score(None)
    assert table["roc_auc"].value == pytest.approx((table["roc_auc/x"].value or 0) / 2 + 0.375)
    assert as_json(table)["roc_auc/y"] == {"value": None}
    one_class = Predictions(["a", "b"], np.array([0, 0]), logits[:2], ("x", "y", "z"))
    alone = score_table(one_class, Bootstrap.of(np.arange(2), resamples=9, area_resamples=9))
    assert (alone["mcc"].value, alone["roc_auc"].value) == (0.0, None)


def test_sums_do_not_depend_on_the_order_of_adding() -> None:
    """Exactly: the numbers that are added are multiples of one power of two."""
    found = summands(random_predictions(4000, 3, 9)).numbers
    backwards = found[::-1].cumsum(axis=0)[-1]
    assert (found.cumsum(axis=0)[-1] == backwards).all()
    weights = np.random.default_rng(0).integers(0, 5, (3, 4000)).astype(float)
    assert ((weights @ found) == (weights[:, ::-1] @ found[::-1])).all()


def test_many_resamples_are_scored_as_one_is() -> None:
    found = summands(random_predictions(60, 3, 2))
    halves = [found.part(np.arange(60) < 30).total(), found.part(np.arange(60) >= 30).total()]
    sums = Sums(*(np.concatenate(pair) for pair in zip(*map(astuple, halves), strict=True)))
    both = scores_of_sums(sums, found.label_names)
    for row, half in enumerate(halves):
        alone = scores_of_sums(half, found.label_names)
        assert {name: both[name][row] for name in both} == {n: alone[n][0] for n in alone}
