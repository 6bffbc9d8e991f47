"""The label rules: all nine pairs, all 729 triples of votes, and the published counts."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from pathlib import Path

import pytest

from mmsa.labels import LABEL_NAMES
from shards.example import Reason, Reject
from shards.label_rules import RULES, decide, fuse, majority, rule_name, shown_rule, soft_shares

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")

# (text, image) pairs of the 4,869 lines of MVSA-Single
SINGLE = {
    ("positive", "positive"): 1398,
    ("positive", "neutral"): 255,
    ("positive", "negative"): 78,
    ("neutral", "positive"): 1030,
    ("neutral", "neutral"): 470,
    ("neutral", "negative"): 421,
    ("negative", "positive"): 280,
    ("negative", "neutral"): 213,
    ("negative", "negative"): 724,
}
P, U, N = "positive", "neutral", "negative"


@pytest.mark.parametrize(
    ("text_label", "image_label", "fused"),
    [
        (P, P, P),
        (P, U, P),
        (P, N, None),
        (U, P, P),
        (U, U, U),
        (U, N, N),
        (N, P, None),
        (N, U, N),
        (N, N, N),
    ],
)
def test_all_nine_pairs(text_label: str, image_label: str, fused: str | None) -> None:
    assert fuse(text_label, image_label) == fused


def outcome(votes: tuple[tuple[str, str], ...], rule: str) -> str:
    """The label, or the reason for which the pair is dropped."""
    try:
        return decide(votes, rule).label
    except Reject as reject:
        return reject.reason


def counts(rule: str) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for pair, number in SINGLE.items():
        totals[outcome((pair,), rule)] += number
    return dict(totals)


def test_the_counts_of_the_whole_label_file() -> None:
    assert counts("fused") == {P: 2683, U: 470, N: 1358, Reason.LABELS_CONFLICT: 358}
    assert counts("agree") == {P: 1398, U: 470, N: 724, Reason.LABELS_DISAGREE: 2277}
    assert counts("text") == {P: 1731, U: 1921, N: 1217}
    assert counts("image") == {P: 2708, U: 938, N: 1223}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ((P, P, P), P),
        ((P, U, P), P),
        ((N, P, N), N),
        ((P, U, N), None),
        ((U,), U),
        ((P, N), None),
        ((P, P, N, N), None),
    ],
)
def test_majority(labels: tuple[str, ...], expected: str | None) -> None:
    assert majority(labels) == expected


@pytest.mark.parametrize(
    ("votes", "fused", "agree", "text", "image"),
    [
        (((P, P), (P, U), (N, P)), P, P, P, P),
        (((P, U), (P, U), (N, P)), P, Reason.LABELS_DISAGREE, P, U),
        (((P, N), (P, N), (U, U)), Reason.LABELS_CONFLICT, Reason.LABELS_DISAGREE, P, N),
        (((P, U), (U, U), (N, U)), Reason.NO_MAJORITY, Reason.NO_MAJORITY, Reason.NO_MAJORITY, U),
        (((U, P), (U, U), (U, N)), Reason.NO_MAJORITY, Reason.NO_MAJORITY, U, Reason.NO_MAJORITY),
    ],
)
def test_three_annotators(
    votes: tuple[tuple[str, str], ...], fused: str, agree: str, text: str, image: str
) -> None:
    found = [outcome(votes, rule) for rule in ("fused", "agree", "text", "image")]
    assert found == [fused, agree, text, image]


def test_a_majority_that_the_rule_does_not_need_may_be_missing() -> None:
    decided = decide(((P, P), (P, U), (P, N)), "text")
    assert (decided.label, decided.text_label, decided.image_label) == (P, P, None)


def test_soft_shares() -> None:
    assert soft_shares([(P, P), (P, U), (U, N)]) == {N: 1 / 3, U: 0.0, P: 2 / 3}
    # The second contradicts himself and does not count.
    assert soft_shares([(P, P), (P, N), (U, U)]) == {N: 0.0, U: 0.5, P: 0.5}
    with pytest.raises(Reject, match="contradict"):
        soft_shares([(P, N), (N, P), (P, N)])


def test_soft_keeps_the_samples_and_labels_of_fused() -> None:
    pairs = list(itertools.product(LABEL_NAMES, repeat=2))
    kept = 0
    for votes in itertools.product(pairs, repeat=3):
        assert outcome(votes, "soft") == outcome(votes, "fused")
        if outcome(votes, "soft") in LABEL_NAMES:
            kept += 1
            soft = decide(votes, "soft").soft
            assert soft is not None
            assert tuple(soft) == LABEL_NAMES
            assert sum(soft.values()) == pytest.approx(1)
    assert kept == 343  # of 729: (21 x 21 triples with majorities) less those that conflict


def test_names_in_the_manifest() -> None:
    assert [rule_name(rule, annotators=1) for rule in ("fused", "agree")] == ["fusion", "agree"]
    assert rule_name("fused", annotators=3) == "majority-fusion"
    # People see one name for it, that of --labels.
    assert [shown_rule(rule_name(rule, annotators=1)) for rule in RULES] == list(RULES)
    assert shown_rule("majority-fusion") == "majority-fused"
    assert shown_rule("given") == "given"
    assert rule_name("soft", annotators=3) == "majority-soft"


@needs_data
def test_the_published_labels_of_multiple_follow_from_its_majorities() -> None:
    with (DATA / "splits" / "tib10-mvsa-multiple.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    fused = Counter(fuse(row["text_label"], row["image_label"]) for row in rows)
    assert len(rows) == 17025
    assert fused == {P: 11318, U: 4408, N: 1299}
    assert all(fuse(row["text_label"], row["image_label"]) == row["label"] for row in rows)
