"""How the labels of one pair become one label: over annotators, then over text and image.

A labelled pair has one vote or several; a vote is (text label, image label). `decide` applies a
rule to the votes. The rules, by the name that `--labels` takes:

    fused   the majority of text and of image, then the fusion rule of Xu and Mao (CIKM 2017)
    agree   only pairs whose majorities of text and image are equal (used by QMF and others)
    text    the majority of text alone        image    the majority of image alone
    soft    samples and labels of `fused`, and the shares of the annotators
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mmsa.labels import LABEL_NAMES
from shards.example import Reason, Reject

Vote = tuple[str, str]  # (text label, image label) of one annotator

RULES = ("fused", "agree", "text", "image", "soft")
FUSION_RULE = "fusion"  # the manifest's name of `fused`
GIVEN = "given"  # the manifest's name where the source has one label for each pair


@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a rule: the label, and the majorities (None without one)."""

    label: str
    text_label: str | None
    image_label: str | None
    soft: dict[str, float] | None = None


def rule_name(rule: str, *, annotators: int) -> str:
    """The name of a rule of `RULES` in the manifest: `fusion`, `agree`, `majority-fusion`, ..."""
    assert rule in RULES, rule
    name = FUSION_RULE if rule == "fused" else rule
    return name if annotators == 1 else f"majority-{name}"


def shown_rule(name: str) -> str:
    """A manifest's rule by the name that `--labels` has for it: `fused`, `majority-fused`, ..."""
    head, dash, rule = name.rpartition("-")
    return f"{head}{dash}{'fused' if rule == FUSION_RULE else rule}"


def fuse(text_label: str, image_label: str) -> str | None:
    """The label of a pair by the fusion rule of Xu and Mao (CIKM 2017); None drops the pair.

    Equal labels stay; one neutral gives way to the other; positive against negative conflict.
    """
    assert text_label in LABEL_NAMES, text_label
    assert image_label in LABEL_NAMES, image_label
    if text_label == image_label or image_label == "neutral":
        return text_label
    if text_label == "neutral":
        return image_label
    return None


def majority(labels: Sequence[str]) -> str | None:
    """The label that more than half of `labels` are: of three, at least two. None without one."""
    label, number = Counter(labels).most_common(1)[0]
    return label if 2 * number > len(labels) else None


def soft_shares(votes: Sequence[Vote]) -> dict[str, float]:
    """Class -> share of the annotators whose own pair of labels fuses to it; every class named.

    Annotators who contradict themselves (positive against negative) do not count. Raises
    `Reject` where all do.
    """
    fused = Counter(label for label in (fuse(*vote) for vote in votes) if label is not None)
    if not fused:
        raise Reject(Reason.LABELS_CONFLICT, "each annotator's text and image contradict")
    return {label: fused[label] / fused.total() for label in LABEL_NAMES}


def decide(votes: Sequence[Vote], rule: str) -> Decision:
    """Apply `rule` to the votes of one pair. Raises `Reject` where it drops the pair."""
    assert rule in RULES, rule
    text = majority([vote[0] for vote in votes])
    image = majority([vote[1] for vote in votes])
    if rule in ("text", "image"):
        label = text if rule == "text" else image
        if label is None:
            raise Reject(
                Reason.NO_MAJORITY, f"{rule}: {_votes_of(votes, 0 if rule == 'text' else 1)}"
            )
        return Decision(label, text, image)
    if text is None:
        raise Reject(Reason.NO_MAJORITY, f"text: {_votes_of(votes, 0)}")
    if image is None:
        raise Reject(Reason.NO_MAJORITY, f"image: {_votes_of(votes, 1)}")
    if rule == "agree":
        if text != image:
            raise Reject(Reason.LABELS_DISAGREE, f"text {text}, image {image}")
        return Decision(text, text, image)
    fused = fuse(text, image)
    if fused is None:
        raise Reject(Reason.LABELS_CONFLICT, f"text {text}, image {image}")
    return Decision(fused, text, image, soft_shares(votes) if rule == "soft" else None)


def _votes_of(votes: Sequence[Vote], part: int) -> str:
    return ", ".join(vote[part] for vote in votes)
