"""The labels of text and image apart: from a sample's JSON to a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import PREPROCESSING, open_split, sample, seal, write_split
from streaming import requests

from mmsa.data.modality_labels import modality_labels, shares_with_labels
from mmsa.data.stream import Loader
from mmsa.labels import LABEL_NAMES, class_map


@pytest.mark.parametrize(
    ("meta", "wanted", "expected"),
    [
        ({"text_label": "positive", "image_label": "negative"}, None, [2, 0]),
        ({"text_label": "neutral"}, None, [1, -1]),
        ({}, None, [-1, -1]),
        ({"text_label": ["positive"], "image_label": 3}, None, [-1, -1]),
        ({"text_label": "joyful", "image_label": "neutral"}, None, [-1, 1]),
        # Classes are left out and merged as those of the pair.
        ({"text_label": "neutral", "image_label": "positive"}, ["positive", "negative"], [-1, 0]),
        (
            {"text_label": "neutral", "image_label": "negative"},
            {"other": ["negative", "neutral"], "good": ["positive"]},
            [0, 0],
        ),
    ],
)
def test_labels_of_a_sample(meta: dict[str, Any], wanted: Any, expected: list[int]) -> None:
    assert modality_labels(meta, class_map(LABEL_NAMES, wanted)) == expected


def test_labels_reach_the_batch_with_their_sample(tmp_path: Path) -> None:
    """Every third sample has a text label, one in four an image label."""
    samples = []
    for number in range(16):
        one = sample(number)
        facts = dict(one.facts)
        if number % 3 == 0:
            facts["text_label"] = LABEL_NAMES[number % 2]
        if number % 4 == 0:
            facts["image_label"] = "positive"
        samples.append(replace(one, facts=facts))
    manifest = seal(tmp_path, {"train": write_split(tmp_path, "train", [samples[:7], samples[7:]])})
    reader, classes = open_split(tmp_path, manifest), class_map(LABEL_NAMES, None)
    assert shares_with_labels(reader, classes) == {"text": 6 / 16, "image": 4 / 16}
    loader = Loader(requests(reader), PREPROCESSING, None, 0, modality_classes=classes)
    seen = 0
    for batch in loader:
        assert batch["modality_labels"].dtype == torch.int64
        for key, own in zip(batch["keys"], batch["modality_labels"].tolist(), strict=True):
            number = int(key.rsplit("-", 1)[1])
            assert own == [
                number % 2 if number % 3 == 0 else -1,
                2 if number % 4 == 0 else -1,
            ]
            seen += 1
    assert seen == 32


def test_large_splits_are_looked_at_in_places(tmp_path: Path, monkeypatch: Any) -> None:
    """At equal distances over uneven shards, an empty one included."""
    monkeypatch.setattr("mmsa.data.modality_labels._MOST_READ", 5)
    labelled = [
        replace(sample(number), facts={"text_label": "neutral"} if number < 10 else {})
        for number in range(20)
    ]
    parts = [labelled[:3], [], labelled[3:]]
    manifest = seal(tmp_path, {"train": write_split(tmp_path, "train", parts)})
    reader = open_split(tmp_path, manifest)
    read: list[tuple[int, int]] = []
    real = reader.read
    monkeypatch.setattr(reader, "read", lambda *place: read.append(place) or real(*place))
    shares = shares_with_labels(reader, class_map(LABEL_NAMES, None))
    assert read == [(0, 0), (2, 1), (2, 5), (2, 9), (2, 13)]
    assert shares == {"text": 3 / 5, "image": 0.0}
