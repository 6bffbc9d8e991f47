"""Many classes: memory, the same scores as from whole matrices, and forms that can be read."""

from __future__ import annotations

import io
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import random_predictions
from PIL import Image

from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.report.confusion_matrix import confusion_matrix_png
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.page.charts import curve_classes
from mmsa.evaluation.report.page.gallery import MAX_BARS, cards
from mmsa.evaluation.report.page.render import render
from mmsa.evaluation.report.summary import summary_text
from mmsa.evaluation.scores.bootstrap import Bootstrap
from mmsa.evaluation.scores.confusions import (
    SHOWN,
    Pair,
    class_cautions,
    most_confused,
    shown_matrix,
)
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics, flat_metrics
from mmsa.evaluation.scores.resampled import resampled_scores
from mmsa.evaluation.scores.score_table import score_table
from mmsa.evaluation.scores.sums import summands

MIB = 1 << 20
IDENTITY = {
    **{"split": "test", "dataset": "tiny", "label_names": []},
    "protocol": {"name": "tiny", "hash": "0" * 64},
}


def facts_of(predictions: Predictions) -> list[SampleFacts]:
    return [
        SampleFacts(key, (0, row), row, "text", row, None, None, width=40, height=32)
        for row, key in enumerate(predictions.keys)
    ]


def test_scores_of_1000_classes_need_little_memory() -> None:
    """Cells of 1,000 x 1,000 for each of 1,000 resamples would be 8 GB."""
    predictions = random_predictions(40, 1000, 0)
    bootstrap = Bootstrap.of(np.arange(40), resamples=1000, area_resamples=50)
    tracemalloc.start()
    table = score_table(predictions, bootstrap)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300 * MIB
    assert table["f1/class 999"].low is not None


def test_a_report_of_many_classes_can_be_read() -> None:
    predictions = random_predictions(40, 60, 0)
    findings = compute_findings(
        *(predictions, facts_of(predictions)), seen=SeenBefore(None, ""), calibration=None,
        floors=None,
    )  # fmt: skip
    page = render(
        *(predictions, findings, IDENTITY), cards=[], training=[], audit=None, openings=0,
        title="", private=True,
    ).decode("utf-8")  # fmt: skip
    text = summary_text(findings)
    # Few lines, each of which fits a screen; the sentences name some of the classes.
    assert len(text.splitlines()) < 50
    assert max(map(len, text.splitlines())) < 250
    assert re.search(r"no sample of this split has the label class \d+, .* more: ", text)
    rows = re.findall(r"<tr><th>.*?</tr>", page, re.S)
    assert [row.count("<td") for row in rows if "<td" in row] == [SHOWN + 1] * (SHOWN + 1)
    assert "30 others" in page
    assert "The 30 of 60 classes with the most errors." in page


@settings(max_examples=12, deadline=None)
@given(
    num_classes=st.sampled_from([2, 3, 21, 22, 60]),  # dense products up to 21, then sparse
    num_samples=st.integers(2, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_resampled_scores_are_those_of_the_drawn_samples(
    num_classes: int, num_samples: int, seed: int
) -> None:
    predictions = random_predictions(num_samples, num_classes, seed)
    groups = np.random.default_rng(seed).integers(0, num_samples, num_samples)
    bootstrap = Bootstrap.of(groups, resamples=3, area_resamples=3)
    found, overall = resampled_scores(
        [summands(predictions), summands(predictions, temperature=2.0)], bootstrap, with_classes=1
    )
    counts = np.concatenate(list(bootstrap.sample_counts()))
    for r in range(3):
        rows = np.repeat(np.arange(num_samples), counts[r])
        keys = [f"{i:06d}" for i in range(len(rows))]
        drawn = Predictions(
            keys, predictions.labels[rows], predictions.logits[rows], predictions.label_names
        )
        expected = flat_metrics(compute_metrics(drawn))
        assert {name: found[name][r] for name in expected} == pytest.approx(expected, abs=1e-9)
        assert overall["macro_f1"][r] == found["macro_f1"][r]
    assert "f1/class 0" in found
    assert "f1/class 0" not in overall


@settings(max_examples=20, deadline=None)
@given(num_classes=st.integers(2, 90), seed=st.integers(0, 1000))
def test_a_shown_matrix_is_small_and_loses_no_sample(num_classes: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 4, (num_classes, num_classes))
    names = [f"c{c}" for c in range(num_classes)]
    shown = shown_matrix(matrix, names)
    assert shown.counts.sum() == matrix.sum()
    assert len(shown.names) == len(shown.counts) <= 40
    assert bool(shown.num_others) == (num_classes > 40) == bool(shown.note)
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diagonal(matrix)
    if shown.num_others:
        kept = {int(name[1:]) for name in shown.names[:-1]}
        assert min(errors[list(kept)]) >= max(errors[list(set(range(num_classes)) - kept)])
        for i, true in enumerate(shown.names[:-1]):
            assert shown.counts[i].sum() == matrix[int(true[1:])].sum()


def test_the_most_confused_pairs_by_hand() -> None:
    matrix = [[5, 3, 0], [1, 0, 3], [0, 0, 0]]
    assert most_confused(matrix, ["a", "b", "c"], limit=2) == [
        Pair("a", "b", 3, 0.375),
        Pair("b", "c", 3, 0.75),
    ]
    assert len(most_confused(matrix, ["a", "b", "c"])) == 3  # a count of 0 is not a confusion
    assert most_confused(np.eye(3, dtype=int), ["a", "b", "c"]) == []


def test_classes_that_are_absent_or_never_predicted_get_a_sentence() -> None:
    assert class_cautions([[1, 1], [0, 1]], ["a", "b"]) == []
    absent, never = class_cautions([[2, 0, 1], [1, 0, 0], [0, 0, 0]], ["a", "b", "c"])
    assert absent.startswith("no sample of this split has the label c: precision, recall and F1")
    assert never == "the model never predicts b on this split: its recall and F1 are 0"
    many = class_cautions(np.diag([3] + [0] * 9), [f"c{i}" for i in range(10)])
    assert "the label c1, c2, c3, c4, c5 and 4 more: " in many[0]
    labels = np.array([0, 1, 2, 0])
    one = Predictions(list("abcd"), labels, np.tile([[1.0, 0, 0]], (4, 1)), ("x", "y", "z"))
    findings = compute_findings(
        one, facts_of(one), seen=SeenBefore(None, ""), calibration=None, floors=None
    )
    sentence = "the model never predicts y, z on this split: their recall and F1 are 0"
    assert sentence in findings["cautions"]
    assert sentence in summary_text(findings)
    page = render(
        *(one, findings, IDENTITY), cards=[], training=[], audit=None, openings=0, title="",
        private=True,
    )  # fmt: skip
    assert f'<p class="caution">Note: {sentence}.</p>' in page.decode("utf-8")


def test_a_chart_has_as_many_curves_as_colours() -> None:
    assert len(curve_classes(random_predictions(300, 30, 1))) == 7
    assert curve_classes(random_predictions(300, 3, 1)) == [0, 1, 2]


def test_a_card_of_many_classes_has_the_most_likely_ones() -> None:
    predictions = random_predictions(5, 30, 3)
    reader: object = None  # not read: the cards are private
    found = cards(predictions, facts_of(predictions), reader, temperature=1.0, private=True)  # type: ignore[arg-type]
    for card in found:
        assert len(card["classes"]) == len(card["probabilities"]) == MAX_BARS
        assert card["probabilities"] == sorted(card["probabilities"], reverse=True)
        assert card["predicted"] == f"class {card['classes'][0]}"


def test_images_of_many_classes_are_of_a_readable_size() -> None:
    matrix = np.eye(200, dtype=int) * 9
    names = [f"a long class name of many characters {c}" for c in range(200)]
    png = confusion_matrix_png(matrix.tolist(), names, title="n")
    width, height = Image.open(io.BytesIO(png)).size
    # 31 cells of 67 pixels, in which a count of three digits has 9 points.
    assert 2000 < width < 2700
    assert 2000 < height < 2700
