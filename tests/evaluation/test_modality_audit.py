"""The modality audit: what a changed reader returns, and the audit of given predictions."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from packed import PREPROCESSING, packed_set

from mmsa.data.decoding.image_views import decode, evaluation_view
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.evaluation.inputs.sample_facts import SampleFacts
from mmsa.evaluation.modality_audit.audit import audit, audit_text
from mmsa.evaluation.modality_audit.changed_inputs import Change, ChangedReader
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.labels import class_map

NAMES = ("negative", "neutral", "positive")
MEAN = (0.5, 0.25, 0.125)


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, list[RawSample]]:
    """All 25 samples of a data set, unchanged and with each change."""
    manifest = packed_set(tmp_path)
    classes = class_map(manifest.classes, None)
    plain = SplitReader(tmp_path, manifest, "train", classes)
    found = {"as they are": [plain.read(*place) for place in plain.places()]}
    for change in Change:
        made = ChangedReader(tmp_path, manifest, "train", classes, change=change, mean=MEAN)
        reader = pickle.loads(pickle.dumps(made))  # as a loader worker gets it
        found[change] = [reader.read(*place) for place in reader.places()]
    return found


def test_keys_and_labels_stay(samples: dict[str, list[RawSample]]) -> None:
    expected = [(one.key, one.label) for one in samples["as they are"]]
    assert all([(s.key, s.label) for s in changed] == expected for changed in samples.values())


def test_masks_remove_one_modality(samples: dict[str, list[RawSample]]) -> None:
    plain, text_only = samples["as they are"], samples[Change.TEXT_ONLY]
    assert [one.text for one in text_only] == [one.text for one in plain]
    view = evaluation_view(decode(text_only[3].image), PREPROCESSING)
    expected = torch.tensor([128, 64, 32], dtype=torch.uint8)  # 255 x MEAN
    assert (view == expected[:, None, None]).all()
    image_only = samples[Change.IMAGE_ONLY]
    assert {one.text for one in image_only} == {""}
    assert [one.image for one in image_only] == [one.image for one in plain]


def test_a_shuffle_moves_every_sample_and_loses_none(samples: dict[str, list[RawSample]]) -> None:
    plain = samples["as they are"]
    images, texts = samples[Change.SHUFFLED_IMAGES], samples[Change.SHUFFLED_TEXTS]
    assert [one.text for one in images] == [one.text for one in plain]
    assert sorted(bytes(one.image) for one in images) == sorted(bytes(one.image) for one in plain)
    assert all(a.image != b.image for a, b in zip(images, plain, strict=True))
    assert [one.image for one in texts] == [one.image for one in plain]
    assert sorted(one.text for one in texts) == sorted(one.text for one in plain)
    both = samples[Change.SHUFFLED_BOTH]
    assert [one.image for one in both] == [one.image for one in images]
    assert [one.text for one in both] == [one.text for one in texts]
    # Image and text of a changed sample always come from two different samples.
    home = {one.image: one.key for one in plain}
    by_text = {}
    for one in plain:
        by_text.setdefault(one.text, set()).add(one.key)
    assert all(by_text[one.text] - {home[one.image]} for one in both)


def predictions(right: np.ndarray) -> Predictions:
    labels = np.arange(300) % 3
    logits = np.eye(3, dtype=np.float32)[np.where(right, labels, (labels + 1) % 3)]
    return Predictions([f"{i:03d}" for i in range(300)], labels, logits, NAMES)


def test_the_audit_reports_costs_and_their_significance() -> None:
    """The image helps on the samples with a URL, the first third; the text never helps."""
    number = np.arange(300)
    whole = predictions(number % 10 != 0)
    without = predictions((number % 10 != 0) & (number >= 100))
    changed = dict.fromkeys(Change, whole) | {
        Change.TEXT_ONLY: without,
        Change.SHUFFLED_IMAGES: without,
    }
    facts = [
        SampleFacts(
            *(key, (0, i), i, "http://x" if i < 100 else "words", i, None, None),
            width=40,
            height=40,
        )
        for i, key in enumerate(whole.keys)
    ]
    found = audit(whole, changed, facts)
    assert list(found["changes"]) == [str(change) for change in Change]
    lost = found["changes"]["text only (picture masked)"]["costs"]["accuracy"]
    assert lost["value"] == pytest.approx(0.3)  # 90 of 300
    assert lost["low"] > 0.2
    assert lost["p_holm"] == pytest.approx(5 * 2 / 10_001)  # five changes
    kept = found["changes"]["texts shuffled"]["costs"]["accuracy"]
    assert (kept["value"], kept["p_holm"]) == (0.0, 1.0)
    slices = found["slices"]
    costs = {name: one["costs"]["pictures shuffled"]["accuracy"] for name, one in slices.items()}
    assert costs["with URL"]["value"] == pytest.approx(0.9)
    assert costs["without URL"]["value"] == 0.0
    text = audit_text(found)
    assert "the image instead of none helps (weighted F1 +0." in text
    assert "another sample's makes no significant difference (weighted" in text
    harmful = audit(without, dict.fromkeys(Change, whole), facts)
    assert "the image instead of none harms (weighted F1 -0." in audit_text(harmful)
