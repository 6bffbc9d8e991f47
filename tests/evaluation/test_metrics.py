"""Metrics against figures worked out by hand and against scikit-learn's single functions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from made_up import random_predictions
from sklearn import metrics as reference

from mmsa.errors import UserError
from mmsa.evaluation.scores.metrics import (
    METRIC_NAMES,
    Predictions,
    compute_metrics,
    flat_metrics,
    metric_problem,
    probabilities,
    rounded,
    selection_value,
)

NAMES = ("negative", "neutral", "positive")
LN2 = math.log(2)


def seven() -> Predictions:
    """Seven samples: 5 right, one negative called neutral, one positive called negative.

    The predicted class has logit ln 2, the others 0: its probability is 1/2, theirs 1/4.
    """
    labels = [0, 0, 1, 1, 2, 2, 2]
    predicted = [0, 1, 1, 1, 2, 2, 0]
    logits = np.zeros((7, 3), dtype=np.float32)
    logits[np.arange(7), predicted] = LN2
    return Predictions([f"k{i}" for i in range(7)], np.array(labels), logits, NAMES)


def test_metrics_by_hand() -> None:
    metrics = compute_metrics(seven())
    assert metrics["num_samples"] == 7
    assert metrics["confusion_matrix"] == [[1, 1, 0], [0, 2, 0], [1, 0, 2]]
    assert metrics["accuracy"] == pytest.approx(5 / 7, abs=1e-12)
    # ln 2 for each of the 5 right, ln 4 for the 2 wrong.
    assert metrics["loss"] == pytest.approx(9 * LN2 / 7, rel=1e-7)
    expected = {
        "negative": {"precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "support": 2},
        "neutral": {"precision": 2 / 3, "recall": 1.0, "f1": 4 / 5, "support": 2},
        "positive": {"precision": 1.0, "recall": 2 / 3, "f1": 4 / 5, "support": 3},
    }
    assert list(metrics["per_class"]) == list(NAMES)
    for name, values in expected.items():
        assert metrics["per_class"][name] == pytest.approx(values, abs=1e-12)
    macro = {"precision": 13 / 18, "recall": 13 / 18, "f1": 7 / 10}
    weighted = {"precision": 16 / 21, "recall": 5 / 7, "f1": 5 / 7}
    assert metrics["macro"] == pytest.approx(macro, abs=1e-12)
    assert metrics["weighted"] == pytest.approx(weighted, abs=1e-12)
    assert "class_weighted_loss" not in metrics


def test_class_weights_add_a_loss_and_change_nothing_else() -> None:
    weighted = compute_metrics(seven(), weights=[2.0, 1.0, 0.5])
    # negative 2 x (1 + 2), neutral 1 x (1 + 1), positive 0.5 x (1 + 1 + 2), in units of ln 2.
    assert weighted.pop("class_weighted_loss") == pytest.approx(10 * LN2 / 7, rel=1e-7)
    assert weighted == compute_metrics(seven())
    with pytest.raises(ValueError, match=r"class weights are \(2,\); expected \(3,\)"):
        compute_metrics(seven(), weights=[1.0, 1.0])


@pytest.mark.parametrize(("num_classes", "seed"), [(2, 0), (3, 1), (3, 2), (7, 3)])
def test_metrics_agree_with_the_reference(num_classes: int, seed: int) -> None:
    predictions = random_predictions(500, num_classes, seed)
    metrics = compute_metrics(predictions)
    true, predicted = predictions.labels, predictions.logits.argmax(axis=1)
    wide = np.exp(predictions.logits.astype(np.float64))
    probs = wide / wide.sum(axis=1, keepdims=True)
    flat = flat_metrics(metrics)
    assert flat["accuracy"] == pytest.approx(reference.accuracy_score(true, predicted), abs=1e-12)
    assert flat["loss"] == pytest.approx(reference.log_loss(true, probs), rel=1e-9)
    for average in ("macro", "weighted"):
        for name in ("precision", "recall", "f1"):
            score = getattr(reference, f"{name}_score")(true, predicted, average=average)
            assert flat[f"{average}_{name}"] == pytest.approx(score, abs=1e-12)
    one = reference.f1_score(true, predicted, average=None)
    assert [flat[f"f1/class {i}"] for i in range(num_classes)] == pytest.approx(list(one))


def test_one_logit_speaks_for_the_second_class() -> None:
    # Odds of the second class 3:1, 1:3, 1:1 and e^800:1.
    logits = np.array([[math.log(3)], [-math.log(3)], [0.0], [800.0]], dtype=np.float32)
    predictions = Predictions(
        ["a", "b", "c", "d"], np.array([1, 1, 0, 0]), logits, ("negative", "positive")
    )
    expected = [[0.25, 0.75], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]
    assert probabilities(logits) == pytest.approx(np.array(expected), rel=1e-7)
    # A logit of 0 is a tie, and ties go to the first class.
    assert predictions.predicted.tolist() == [1, 0, 0, 1]
    metrics = compute_metrics(predictions)
    assert metrics["confusion_matrix"] == [[1, 1], [1, 1]]
    losses = [math.log(4 / 3), math.log(4), math.log(2), 800.0]
    assert metrics["loss"] == pytest.approx(sum(losses) / 4, rel=1e-7)


def test_one_logit_and_two_are_the_same_model() -> None:
    two = random_predictions(300, 2, seed=5)
    zero_first = np.zeros_like(two.logits)
    zero_first[:, 1] = two.logits[:, 1]
    with_two = Predictions(two.keys, two.labels, zero_first, two.label_names)
    with_one = Predictions(two.keys, two.labels, two.logits[:, 1:], two.label_names)
    assert rounded(compute_metrics(with_one)) == rounded(compute_metrics(with_two))


def test_large_logits_stay_finite() -> None:
    logits = np.array([[1000.0, 0.0, -1000.0], [3e38, -3e38, 0.0]], dtype=np.float32)
    predictions = Predictions(["a", "b"], np.array([1, 0]), logits, NAMES)
    assert compute_metrics(predictions)["loss"] == pytest.approx(500.0, rel=1e-12)
    assert probabilities(logits).tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_a_class_without_samples_counts_as_zero() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    predictions = Predictions(["a", "b", "c"], np.array([0, 0, 2]), logits, NAMES)
    metrics = compute_metrics(predictions)
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert metrics["per_class"]["neutral"] == zero
    assert metrics["macro"]["f1"] == pytest.approx(2 / 3)
    assert metrics["weighted"]["f1"] == 1.0
    assert metrics["confusion_matrix"] == [[2, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_ties_go_to_the_first_class() -> None:
    logits = np.array([[1, 1, 1], [0, 2, 2], [3, 0, 3]], dtype=np.float32)
    predictions = Predictions(["a", "b", "c"], np.array([0, 0, 0]), logits, NAMES)
    assert predictions.predicted.tolist() == [0, 1, 0]


def test_order_of_arrival_does_not_matter() -> None:
    one = random_predictions(400, 3, seed=8)
    rows = np.random.default_rng(1).permutation(400)
    other = Predictions.by_key(
        [one.keys[row] for row in rows], one.labels[rows], one.logits[rows], one.label_names
    )
    assert other.keys == one.keys
    assert compute_metrics(other) == compute_metrics(one)


def test_predictions_are_copies_that_cannot_be_written_to() -> None:
    logits = np.eye(3, dtype=np.float32)
    predictions = Predictions(["a", "b", "c"], np.array([0, 1, 2]), logits, NAMES)
    logits[0] = 9.0
    assert predictions.logits[0].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="read-only"):
        predictions.logits[0, 0] = 2.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused_with_the_key(value: float) -> None:
    logits = np.zeros((3, 3), dtype=np.float32)
    logits[1, 2] = value
    with pytest.raises(UserError, match=r"1 of 3 samples .* the first is 'b'.*diverged"):
        Predictions(["a", "b", "c"], np.array([0, 1, 2]), logits, NAMES)


def test_a_key_twice_and_no_samples_are_errors_of_the_data() -> None:
    logits = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(UserError, match="the key 'a' stands twice"):
        Predictions(["a", "a"], np.array([0, 1]), logits, NAMES)
    with pytest.raises(UserError, match="no samples"):
        Predictions([], np.array([]), np.zeros((0, 3)), NAMES)


@pytest.mark.parametrize(
    ("keys", "labels", "shape", "names", "message"),
    [
        (["b", "a"], [0, 1], (2, 3), NAMES, "not sorted: 'a' stands behind 'b'"),
        (["a", "b"], [0, 3], (2, 3), NAMES, "label 3 of 'b'; expected 0 to 2"),
        (["a", "b"], [0, -1], (2, 3), NAMES, "label -1 of 'b'"),
        (["a", "b"], [0, 1, 2], (2, 3), NAMES, r"labels are \(3,\); expected \(2,\)"),
        (["a", "b"], [0.0, 0.5], (2, 3), NAMES, "labels are float64; expected integers"),
        (["a", "b"], [0, 1], (2, 2), NAMES, r"logits are \(2, 2\); expected \(2, 3\)"),
        (["a", "b"], [0, 1], (2, 1), NAMES, r"logits are \(2, 1\); expected \(2, 3\)"),
        (["a", "b"], [0, 1], (2,), ("x", "y"), r"logits are \(2,\)"),
        (["a", "b"], [0, 1], (2, 2), ("x", "x"), "two distinct"),
    ],
)
def test_mistakes_of_the_caller(
    keys: list[str],
    labels: list[float],
    shape: tuple[int, ...],
    names: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(keys, np.array(labels), np.zeros(shape, dtype=np.float32), names)


def test_selection_prefers_more_and_a_smaller_loss() -> None:
    metrics = compute_metrics(seven())
    assert selection_value(metrics, "weighted_f1") == pytest.approx(5 / 7)
    assert selection_value(metrics, "macro_f1") == pytest.approx(0.7)
    assert selection_value(metrics, "macro_precision") == pytest.approx(13 / 18)
    assert selection_value(metrics, "loss") == pytest.approx(-9 * LN2 / 7, rel=1e-7)
    assert all(isinstance(selection_value(metrics, name), float) for name in METRIC_NAMES)


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    assert metric_problem("weighted_f1") is None
    expected = "unknown metric 'weigthed_f1'; did you mean weighted_f1?"
    assert metric_problem("weigthed_f1") == expected
    assert "known: weighted_f1, macro_f1, accuracy" in str(metric_problem("zzz"))
    with pytest.raises(UserError, match="train.select_by: unknown metric 'f_one'"):
        selection_value(compute_metrics(seven()), "f_one")


def test_rounding_reaches_every_float_and_no_integer() -> None:
    content = {"a": 0.123456789, "b": [1234567.89, (1e-9 / 3,)], "c": {"n": 12345678, "s": "x"}}
    expected = {"a": 0.123457, "b": [1234570.0, [3.33333e-10]], "c": {"n": 12345678, "s": "x"}}
    assert rounded(content) == expected
    assert rounded(np.float64(2 / 3)) == 0.666667


def test_importing_the_evaluation_loads_nothing_heavy() -> None:
    code = (
        "import sys, mmsa.evaluation.scores.metrics, mmsa.evaluation.report.files, "
        "mmsa.evaluation.inputs.ledger, mmsa.evaluation.floors.__main__\n"
        "print([n for n in ('torch', 'transformers', 'sklearn', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path[:0] = %r\n%s" % (sys.path, code)],  # noqa: UP031
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
