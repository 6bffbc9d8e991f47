"""Comparisons: statistical tests against known values, and models with a known outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mmsa.errors import UserError
from mmsa.evaluation.compare.comparison import check_comparable, check_metric, compare
from mmsa.evaluation.compare.comparison_text import comparison_text
from mmsa.evaluation.compare.experiments import check_experiments, pooled_experiments
from mmsa.evaluation.compare.folds import check_folds, fold_findings, folds_text, pooled
from mmsa.evaluation.report.read_report import Report
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.evaluation.scores.paired_tests import holm, mcnemar, spread, verdict_caution

NAMES = ("negative", "neutral", "positive")
N = 400


def make_report(name: str, right: float, *, seed: int = 0, noise: int = 0, **given: Any) -> Report:
    """The report of a model that is right on a share `right` of the same 400 samples."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 3, N)
    flips = np.random.default_rng(noise).uniform(size=N) < right
    predicted = np.where(flips, labels, (labels + 1) % 3)
    logits = np.eye(3, dtype=np.float32)[predicted] * 2
    identity = {
        **{"split": "test", "dataset": "d", "label_names": list(NAMES), "seed": seed},
        **{"protocol": {"name": "clean", "hash": "12" * 32}, "samples_sha256": "a"},
        **{"weights_sha256": name, "configuration": name, "shards_digest": "", "code_version": ""},
        **given,
    }
    keys = [f"{i:04d}" for i in range(N)]
    groups = np.arange(N, dtype=np.uint64) // 2
    return Report(name, Path(name), identity, Predictions(keys, labels, logits, NAMES), groups)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = np.array([True] * 10 + [False] * 2 + [True] * 88)
    second = np.array([False] * 10 + [True] * 2 + [True] * 88)
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (10, 2)
    # 2 x (C(12, 0) + C(12, 1) + C(12, 2)) / 2^12 = 2 x 79 / 4096
    assert p == pytest.approx(158 / 4096)
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_holm_by_hand() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1; never less than the one before.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.45]) == pytest.approx([0.8, 0.8])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_over_seeds_is_students() -> None:
    found = spread([0.70, 0.72, 0.68])
    # deviation 0.02, t(0.975, 2) = 4.30265, half width 4.30265 x 0.02 / sqrt 3 = 0.049683
    assert found["mean"] == pytest.approx(0.70)
    assert found["deviation"] == pytest.approx(0.02)
    assert found["low"] == pytest.approx(0.650317, abs=1e-6)
    assert found["high"] == pytest.approx(0.749683, abs=1e-6)
    assert spread([0.5]) == {"mean": 0.5, "deviation": None, "low": None, "high": None}


def test_a_clear_difference_and_one_by_chance() -> None:
    reports = [make_report("good", 0.80, noise=1), make_report("bad", 0.5, noise=2)]
    reports.append(make_report("same", 0.81, noise=3))
    found = compare(reports, "weighted_f1")
    assert [one["name"] for one in found["contenders"]][-1] == "bad"
    scores = {one["name"]: one["scores"]["weighted_f1"]["value"] for one in found["contenders"]}
    for one in reports:
        truth = one.predictions
        expected = f1_score(truth.labels, truth.predicted, average="weighted")
        assert scores[one.name] == pytest.approx(expected)
    pairs = {frozenset((p["first"], p["second"])): p for p in found["pairs"]}
    assert len(pairs) == 3
    clear = pairs[frozenset(("good", "bad"))]
    assert clear["first"] == "good"
    assert clear["differences"]["weighted_f1"]["low"] > 0.1
    assert clear["differences"]["weighted_f1"]["p_holm"] == pytest.approx(3 * 2 / 10_001, rel=0.6)
    assert clear["mcnemar"]["p_holm"] < 1e-6
    assert clear["mcnemar"]["first_only"] > clear["mcnemar"]["second_only"]
    chance = pairs[frozenset(("good", "same"))]
    assert chance["differences"]["weighted_f1"]["p_holm"] > 0.05
    assert chance["mcnemar"]["p_holm"] > 0.05
    # A lower loss is better; the metric that sorts also orders the pair.
    by_loss = compare(reports, "loss")
    assert by_loss["contenders"][-1]["name"] == "bad"
    text = comparison_text(found)
    assert "not distinguishable from the first" in text
    assert "are not distinguishable (weighted F1 " in text
    assert "good is better than bad (weighted F1 +0." in text
    assert "better than bad (log loss -" in comparison_text(by_loss)
    assert "caution" not in text


def small_report(name: str, predicted: list[int], labels: list[int]) -> Report:
    logits = np.eye(3, dtype=np.float32)[predicted] * 2
    keys = [f"{i:04d}" for i in range(len(labels))]
    identity = make_report(name, 0.5).identity
    predictions = Predictions(keys, np.array(labels), logits, NAMES)
    return Report(name, Path(name), identity, predictions, np.arange(len(labels), dtype=np.uint64))


def test_better_on_8_samples_is_said_with_caution() -> None:
    """Four answers decide: the bootstrap says p = 0.01, McNemar's exact test 0.125."""
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    good = small_report("good", labels, labels)
    bad = small_report("bad", [1, 2, 0, 1, *labels[4:]], labels)
    found = compare([good, bad], "accuracy")
    pair = found["pairs"][0]
    assert pair["differences"]["accuracy"]["p_holm"] < 0.05
    assert pair["mcnemar"]["p"] == 0.125
    text = comparison_text(found)
    assert "good is better" not in text
    assert (
        "but with caution: 8 independent samples are fewer than 50; only one of the two is right "
        "on 4 sample(s), fewer than 25; McNemar's exact test does not confirm it (p = 0.1250)"
    ) in text
    assert "with caution, see below" in text
    assert verdict_caution("macro_f1", 400, 25, 0.04) is None
    assert verdict_caution("loss", 400, 3, 0.9) is None  # not a score of answers
    assert verdict_caution("loss", 49, 3, 0.9) is not None
    assert verdict_caution("f1/neutral", 400, 24.5, None) is not None  # several seeds


def test_a_model_is_not_distinguishable_from_one_that_says_the_same() -> None:
    found = compare([make_report("a", 0.7, noise=1), make_report("b", 0.7, noise=1)], "macro_f1")
    difference = found["pairs"][0]["differences"]["macro_f1"]
    assert difference == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_holm": 1.0}


def test_seeds_of_one_configuration_are_one_contender() -> None:
    seeds = [make_report(f"s{i}", 0.75, seed=i, noise=i, configuration="c") for i in range(3)]
    other = make_report("other", 0.6, noise=9)
    found = compare([*seeds, other], "accuracy")
    first, second = found["contenders"]
    assert first["name"] == "s0 (3 seeds)"
    assert first["seeds"] == [0, 1, 2]
    each = [(one.predictions.labels == one.predictions.predicted).mean() for one in seeds]
    assert first["scores"]["accuracy"]["value"] == pytest.approx(np.mean(each))
    over = first["scores"]["accuracy"]["over_seeds"]
    assert over["deviation"] == pytest.approx(np.std(each, ddof=1))
    assert "over_seeds" not in second["scores"]["accuracy"]
    assert found["pairs"][0]["mcnemar"] is None
    assert "seeds 0, 1, 2: mean accuracy" in comparison_text(found)
    # Two checkpoints of one run have one seed: they are compared, not averaged.
    twice = [make_report(f"c{i}", 0.7, noise=i, configuration="c") for i in range(2)]
    assert len(compare(twice, "accuracy")["contenders"]) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": {"name": "random", "hash": "34" * 32}}, "the protocol .* random"),
        ({"protocol": {"name": "clean", "hash": "34" * 32}}, r"the protocol .* clean \(343434"),
        ({"label_names": ["neutral", "negative", "positive"]}, "class order .* neutral, neg"),
        ({"samples_sha256": "b"}, r"sample set \(keys and labels\) of one is a, of the other b"),
        ({"split": "val"}, "the split of one is test, of the other val"),
        ({"dataset": "e"}, "data set of one is d, of the other e"),
        ({"weights_sha256": "a"}, "a and b are the same weights"),
    ],
)
def test_reports_of_different_tasks_are_refused_with_the_reason(
    change: dict[str, Any], words: str
) -> None:
    one, other = make_report("a", 0.7), make_report("b", 0.7, **change)
    with pytest.raises(UserError, match=words):
        check_comparable([("a", one.identity), ("b", other.identity)])


def test_an_unknown_metric_suggests_the_nearest() -> None:
    check_metric("roc_auc/neutral", NAMES)
    with pytest.raises(
        UserError, match="--metric wighted_f1 is not a score; did you mean weighted"
    ):
        check_metric("wighted_f1", NAMES)
    with pytest.raises(UserError, match="--metric f1 is not a score; did you mean macro_f1"):
        check_metric("f1", NAMES)


def folds(count: int = 3, whole: Report | None = None) -> list[Report]:
    """One model's report, split into folds by key."""
    whole = whole or make_report("whole", 0.7)
    found = []
    for number in range(count):
        rows = np.arange(number, N, count)
        part = Predictions(
            [whole.predictions.keys[row] for row in rows],
            whole.predictions.labels[rows],
            whole.predictions.logits[rows],
            NAMES,
        )
        protocol = {"name": f"kfold:{number + 1}/{count}", "hash": "ab" * 32}
        weights = f"{whole.name} {whole.identity['seed']} {number}"
        identity = whole.identity | {"protocol": protocol, "weights_sha256": weights}
        name = f"{whole.name}/f{number}"
        found.append(Report(name, Path("x"), identity, part, whole.groups[rows]))
    return found


def identities(reports: list[Report]) -> list[tuple[str, dict[str, Any]]]:
    return [(one.name, one.identity) for one in reports]


def test_folds_are_pooled_to_the_whole_and_averaged() -> None:
    reports, whole = folds(), make_report("whole", 0.7)
    numbers = check_folds(identities(reports))
    predictions, groups = pooled(list(reversed(reports)))
    assert predictions.keys == whole.predictions.keys
    assert (predictions.logits == whole.predictions.logits).all()
    assert (groups == whole.groups).all()
    found = fold_findings(reports, numbers, predictions, groups)
    right = [(one.predictions.labels == one.predictions.predicted) for one in reports]
    each = [float(one.mean()) for one in right]
    over = found["over_folds"]["accuracy"]
    assert over["mean"] == pytest.approx(np.mean(each))
    assert over["deviation"] == pytest.approx(np.std(each, ddof=1))
    assert found["pooled"]["scores"]["accuracy"]["value"] == pytest.approx(
        np.concatenate(right).mean()
    )
    assert [one["fold"] for one in found["folds"]] == [1, 2, 3]
    assert "d, kfold, 3 folds, test split; samples: 134, 133, 133" in folds_text(found)
    assert "never predicts" not in folds_text(found)
    found["pooled"]["confusion_matrix"] = [[3, 0, 0], [1, 0, 0], [0, 0, 2]]
    assert "\nthe model never predicts neutral on this split: its recall" in folds_text(found)


def test_folds_that_do_not_belong_together_are_refused() -> None:
    three = identities(folds())
    with pytest.raises(UserError, match="needs all 3 folds of kfold; missing: 2"):
        check_folds([three[0], three[2]])
    with pytest.raises(UserError, match="found twice: 1"):
        check_folds([three[0], *three])
    with pytest.raises(UserError, match="protocol 'clean', which has no folds"):
        check_folds(identities([make_report("a", 0.7)]))
    with pytest.raises(UserError, match="their protocol differs"):
        check_folds([three[0], identities(folds(4))[1]])
    with pytest.raises(UserError, match="their configuration differs"):
        check_folds([three[0], ("x", three[1][1] | {"configuration": "z"})])
    with pytest.raises(UserError, match="'0000' is in this split of two folds"):
        pooled([folds()[0], folds()[0]])


def test_whole_experiments_are_compared_like_models_on_one_split() -> None:
    wholes = [make_report("good", 0.8, noise=1), make_report("bad", 0.6, noise=2)]
    reports = [fold for whole in wholes for fold in folds(whole=whole)]
    mixed = [reports[place] for place in (4, 0, 3, 2, 5, 1)]  # in any order
    check_experiments(identities(mixed))
    found, expected = compare(pooled_experiments(mixed), "accuracy"), compare(wholes, "accuracy")
    assert [one["name"] for one in found["contenders"]] == ["good", "bad"]
    for ours, whole in zip(found["contenders"], expected["contenders"], strict=True):
        assert ours["scores"] == whole["scores"]
    assert found["pairs"][0]["differences"] == expected["pairs"][0]["differences"]
    assert "d, test split, protocol kfold, 3 folds " in comparison_text(found)


def test_seeds_of_an_experiment_are_one_contender() -> None:
    wholes = [
        *[make_report("good", 0.8, seed=seed, noise=seed) for seed in (0, 1)],
        make_report("bad", 0.6, noise=9),
    ]
    reports = [fold for whole in wholes for fold in folds(whole=whole)]
    check_experiments(identities(reports))
    good, bad = compare(pooled_experiments(reports), "accuracy")["contenders"]
    assert (len(good["runs"]), len(bad["runs"])) == (2, 1)


def test_experiments_that_do_not_belong_together_are_refused() -> None:
    one, other = folds(), folds(whole=make_report("other", 0.6, noise=3))
    with pytest.raises(UserError, match="all targets have the same configuration and seed"):
        check_experiments(identities(one))
    with pytest.raises(UserError, match="needs all 3 folds of kfold; missing: 3"):
        check_experiments(identities([*one, *other[:2]]))
    with pytest.raises(
        UserError, match="protocol of one is kfold, 3 folds .*of the other kfold, 4"
    ):
        check_experiments(identities([*one, *folds(4, whole=make_report("four", 0.6, noise=3))]))
    others_hash = {"name": "kfold:1/3", "hash": "cd" * 32}
    moved = [
        (name, identity | {"protocol": others_hash}) if name == "other/f0" else (name, identity)
        for name, identity in identities(other)
    ]
    with pytest.raises(UserError, match="cannot be compared: the protocol of one"):
        check_experiments([*identities(one), *moved])
    lacking = other[0].predictions
    fewer = Predictions(lacking.keys[1:], lacking.labels[1:], lacking.logits[1:], NAMES)
    short = Report("other/f0", Path("x"), other[0].identity, fewer, other[0].groups[1:])
    with pytest.raises(UserError, match="the sample set"):
        pooled_experiments([*one, short, *other[1:]])
