"""Scores of the auxiliary heads: those of scikit-learn, however the samples are divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from mmsa.evaluation.auxiliary_scores import AuxiliaryScores

ROWS = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(-1, 2), st.integers(0, 2)), min_size=1, max_size=30
)


@settings(max_examples=20, deadline=None)
@given(rows=ROWS, cut=st.integers(0, 30))
def test_they_are_those_of_scikit_learn(rows: list[tuple[int, int, int]], cut: int) -> None:
    labels = torch.tensor([row[:2] for row in rows])
    logits = torch.eye(3)[[row[2] for row in rows]]
    found = AuxiliaryScores(["text", "image"], 3)
    for part in (slice(0, cut), slice(cut, None)):  # two batches, one of them perhaps empty
        found.add({"text": logits[part], "image": -logits[part]}, labels[part])
    scores = found.scores()
    for place, (name, of_head) in enumerate({"text": logits, "image": -logits}.items()):
        known = labels[:, place] >= 0
        if not known.any():
            assert name not in scores
            continue
        true, predicted = labels[known, place].numpy(), of_head[known].argmax(dim=1).numpy()
        assert scores[name]["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        f1 = f1_score(true, predicted, average="weighted", zero_division=0)
        assert scores[name]["weighted_f1"] == pytest.approx(f1)


def test_one_logit_is_that_of_the_second_class() -> None:
    found = AuxiliaryScores(["image"], 2)
    labels = torch.tensor([[-1, 0], [-1, 1], [-1, 1], [0, -1]])
    found.add({"image": torch.tensor([[-2.0], [0.5], [-0.1], [9.0]])}, labels)
    assert found.scores() == {
        "image": {"accuracy": 2 / 3, "weighted_f1": pytest.approx(2 / 3)},
    }


def test_a_rank_without_samples_adds_nothing() -> None:
    found = AuxiliaryScores(["text"], 2)
    assert found.scores() == {}
    assert np.array_equal(found._counts("text"), np.zeros((3, 2)))
