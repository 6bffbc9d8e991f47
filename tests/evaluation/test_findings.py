"""The parts of a report other than scores: leaks, slices, floors, calibration."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed import open_split, picture, sample, seal, write_split

from mmsa.calibration import Calibration, described, read_calibration, temperature_of, to_json
from mmsa.data.index_file import key_hash
from mmsa.data.manifest import Manifest
from mmsa.errors import UserError
from mmsa.evaluation.floors.fitting import Floors, fit_floors
from mmsa.evaluation.inputs import same_content
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of, read_facts
from mmsa.evaluation.inputs.seen_before import SeenBefore, count_seen, seen_before
from mmsa.evaluation.inputs.slices import slice_masks
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.summary import summary_text
from mmsa.evaluation.scores.calibration import fit, reliability
from mmsa.evaluation.scores.metrics import Predictions, probabilities
from mmsa.evaluation.scores.score_table import score_table
from shards.packing.tars import PackedSample

NAMES = ("negative", "neutral", "positive")


def fact(number: int, text: str = "abc", **given: object) -> SampleFacts:
    content = {
        **{"key": f"{number:04d}", "place": (0, number), "key_hash": number, "text": text},
        **{"group": number, "text_label": None, "image_label": None, "width": 40, "height": 30},
    }
    return SampleFacts(**{**content, **given})  # type: ignore[arg-type]


def predictions_of(num_samples: int, seed: int = 0, scale: float = 1.0) -> Predictions:
    """Labels drawn from the model's own probabilities, logits then multiplied by `scale`."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=1.5, size=(num_samples, 3))
    probs = probabilities(logits)
    labels = (probs.cumsum(axis=1) < random.uniform(size=(num_samples, 1))).sum(axis=1)
    keys = [f"{i:06d}" for i in range(num_samples)]
    return Predictions(keys, labels, (logits * scale).astype(np.float32), NAMES)


def test_facts_are_those_of_the_shards(tmp_path: Path) -> None:
    duplicates = [sample(0), sample(1)]
    duplicates[1] = PackedSample(**{**vars(duplicates[1]), "group": duplicates[0].group})
    duplicates[0] = PackedSample(
        **{**vars(duplicates[0]), "facts": {"text_label": "neutral", "width": 7}}
    )
    manifest = seal(tmp_path, {"train": write_split(tmp_path, "train", [duplicates])})
    first, second = read_facts(open_split(tmp_path, manifest))
    assert (first.key, first.text_label, first.image_label) == ("tiny-train-0", "neutral", None)
    assert (first.width, first.height) == (40, 32)  # of the header: the json has no height
    assert second.group == first.group == key_hash("tiny-train-0")
    assert second.text == sample(1).text


def test_slices_by_facts_of_the_samples() -> None:
    facts = [
        fact(0, "see https://x.y", text_label="neutral", image_label="neutral", height=60),
        fact(1, "@you and me at home", text_label="neutral", image_label="positive"),
        fact(2, "mail a@b", width=20, height=20),
        fact(3, "no", width=40, height=47),
    ]
    found = {name: mask.tolist() for name, mask in slice_masks(facts).items()}
    assert found == {
        "text and image label agree": [True, False, False, False],
        "text and image label conflict": [False, True, False, False],
        "with URL": [True, False, False, False],
        "without URL": [False, True, True, True],
        "with mention": [False, True, False, False],  # a@b is an address
        "without mention": [True, False, True, True],
        "short text (up to 11 characters)": [False, False, True, True],
        "long text (over 11 characters)": [True, True, False, False],
        "small picture (short side under 35 px)": [False, True, True, False],
        "large picture (short side of 35 px and more)": [True, False, False, True],
        "tall picture": [True, False, False, False],  # 60 : 40, and not 47 : 40
        "wide or square picture": [False, True, True, True],
    }
    assert slice_masks([fact(0), fact(1)]) == {}  # all alike


@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 1.0), (3.0, 3.0), (0.4, 0.4)])
def test_the_temperature_undoes_a_scaling_of_the_logits(scale: float, temperature: float) -> None:
    found = fit(predictions_of(20_000, scale=scale), split="val", shards_digest="ab")
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.loss_after <= found.loss_before
    assert (found.num_samples, found.fitted_on, found.shards_digest) == (20_000, "val", "ab")


def test_a_temperature_is_never_fitted_on_test() -> None:
    with pytest.raises(UserError, match="fitted on 'val', never on 'test'"):
        fit(predictions_of(9), split="test", shards_digest="")


def test_a_calibration_is_read_back_and_damage_is_reported(tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    found = fit(predictions_of(50), split="val", shards_digest="ab")
    (tmp_path / "calibration.json").write_text(to_json(found))
    assert read_calibration(tmp_path) == found
    for damaged in ("{", '{"temperature": 1.0}', to_json(found).replace('re": ', 're": -')):
        (tmp_path / "calibration.json").write_text(damaged)
        with pytest.raises(UserError, match="does not contain a calibration .*--calibrate"):
            read_calibration(tmp_path)


def alike(num_samples: int, right: bool) -> Predictions:
    """Samples that are all predicted correctly, or all wrongly, with the same confidence."""
    labels = np.arange(num_samples) % 3
    logits = np.eye(3, dtype=np.float32)[labels if right else (labels + 1) % 3]
    return Predictions([f"{i:04d}" for i in range(num_samples)], labels, logits, NAMES)


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        (alike(3, right=True), "fitted on 3 validation sample(s), and fewer than 50 do not"),
        (predictions_of(49), "fitted on 49 validation sample(s), and fewer than 50 do not"),
        (alike(60, right=True), "of 60 validation samples ended at 0.05"),
        (alike(60, right=False), "of 60 validation samples ended at "),
    ],
)
def test_no_temperature_of_too_few_samples_or_at_a_bound(
    predictions: Predictions, words: str, tmp_path: Path
) -> None:
    words = words.replace("of 60", "on 60")
    fitted = fit(predictions, split="val", shards_digest="")
    assert fitted.temperature is None
    assert temperature_of(fitted) == 1.0
    assert fitted.loss_after == fitted.loss_before
    assert words in described(fitted)
    (tmp_path / "calibration.json").write_text(to_json(fitted))
    assert read_calibration(tmp_path) == fitted
    found = found_of(alike(6, right=True), SeenBefore(None, ""), fitted)
    assert found["calibration"]["temperature"] is None  # type: ignore[index]
    assert f"calibration: no temperature: {fitted.why_none}; " in summary_text(found)


def test_a_temperature_of_an_earlier_version_is_not_used_if_3_samples_decided(
    tmp_path: Path,
) -> None:
    old = '{"temperature": 0.0500003, "fitted_on": "val", "num_samples": 3, "shards_digest": "", '
    (tmp_path / "calibration.json").write_text(old + '"loss_before": 0.6, "loss_after": 0.1}')
    found = read_calibration(tmp_path)
    assert found is not None
    assert found.temperature is None
    assert "3 validation sample(s)" in str(found.why_none)
    assert fit(predictions_of(50), split="val", shards_digest="").temperature is not None


def test_the_reliability_diagram_by_hand() -> None:
    odds = [math.log(p / (1 - p)) for p in (0.62, 0.64, 0.99)]
    logits = np.array([[z, 0.0] for z in odds], dtype=np.float32)
    bins = reliability(Predictions(list("abc"), np.array([0, 1, 0]), logits, ("x", "y")))
    assert [one["num_samples"] for one in bins] == [2, 1]
    assert bins[0]["from"] == pytest.approx(0.6)
    assert bins[0]["to"] == pytest.approx(2 / 3)
    assert bins[0]["confidence"] == pytest.approx(0.63)
    assert bins[0]["accuracy"] == 0.5


def found_of(
    predictions: Predictions,
    seen: SeenBefore,
    calibration: Calibration | None = None,
    floors: Floors | None = None,
) -> dict[str, object]:
    facts = [fact(i, f"text {'@a ' * (i % 2)}") for i in range(len(predictions.keys))]
    return compute_findings(predictions, facts, seen=seen, calibration=calibration, floors=floors)


def test_clean_and_leaked_samples_are_scored_separately() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]] * 5
    predictions = Predictions(list("abcdef"), np.array([0, 1, 2, 1, 2, 2]), logits, NAMES)
    leaked = np.array([True, True, True, False, False, False])
    found = found_of(predictions, SeenBefore(leaked))
    leaks = found["leaks"]
    assert isinstance(leaks, dict)
    assert leaks["clean"]["num_samples"] == leaks["leaked"]["num_samples"] == 3
    assert leaks["leaked"]["scores"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert leaks["clean"]["scores"]["accuracy"]["value"] == pytest.approx(1 / 3)
    text = summary_text(found)
    assert re.search(r"^leaks +clean, n = 3 +leaked, n = 3$", text, re.M)
    nothing = summary_text(found_of(predictions, SeenBefore(np.zeros(6, dtype=bool))))
    assert "no sample has a duplicate in a split that was used before this one" in nothing
    unknown = summary_text(found_of(predictions, SeenBefore(None, "because")))
    assert "leaks: unknown (because)" in unknown


def test_floors_are_reported_with_the_lead_of_the_model() -> None:
    labels = [i % 3 for i in range(90)]
    words = ["awful sad", "plain usual", "lovely happy"]
    texts = [words[label] for label in labels]
    facts = [fact(i, texts[i]) for i in range(90)]
    logits = np.zeros((90, 3), dtype=np.float32)  # the model always predicts the first class
    model = Predictions([one.key for one in facts], np.array(labels), logits, NAMES)
    floors = fit_floors((texts, labels), (texts, labels), facts, model)
    found = compute_findings(
        model, facts, seen=SeenBefore(None, ""), calibration=None, floors=floors
    )
    assert found["floors"]["tfidf"]["scores"]["accuracy"]["value"] == 1.0
    assert found["floors"]["majority"]["scores"]["accuracy"]["value"] == pytest.approx(1 / 3)
    lead = found["floors"]["lead_over_tfidf"]["accuracy"]
    assert lead["value"] == pytest.approx(-2 / 3)
    assert lead["low"] < -2 / 3 < lead["high"] < -0.5
    assert lead["p"] == pytest.approx(2 / 10_001)
    text = summary_text(found)
    assert "majority class  TF-IDF, text only" in text
    assert "accuracy -0.6667 [-0." in text


def test_calibrated_scores_are_reported_with_the_raw_ones() -> None:
    predictions = predictions_of(2000, scale=3.0)
    calibration = fit(predictions_of(2000, seed=1, scale=3.0), split="val", shards_digest="")
    found = found_of(predictions, SeenBefore(None, ""), calibration)
    raw, calibrated = found["scores"], found["calibration"]
    assert isinstance(raw, dict)
    assert isinstance(calibrated, dict)
    assert calibrated["scores"]["ece"]["high"] < raw["ece"]["low"]
    assert calibrated["scores"]["loss"]["high"] < raw["loss"]["low"]
    cooled = predictions.logits.astype(float) / calibration.temperature
    by_hand = score_table(
        Predictions(predictions.keys, predictions.labels, cooled, NAMES), None, areas=False
    )
    assert calibrated["scores"]["brier"]["value"] == pytest.approx(by_hand["brier"].value, rel=1e-6)
    assert "temperature 3" in summary_text(found) or "temperature 2.9" in summary_text(found)


@pytest.fixture
def duplicates(tmp_path: Path) -> tuple[Path, Manifest]:
    """test-0 is a duplicate of train-0, test-1 of val-0; test-2 has no duplicate."""
    groups = {"tiny-test-0": "tiny-train-0", "tiny-test-1": "tiny-val-0"}
    groups["tiny-train-2"] = "tiny-train-0"
    splits = {}
    for split, count in (("train", 3), ("val", 2), ("test", 3)):
        samples = [sample(number, split=split) for number in range(count)]
        samples = [
            PackedSample(**{**vars(s), "group": key_hash(groups.get(s.key, s.key))})
            for s in samples
        ]
        splits[split] = write_split(tmp_path, split, [samples])
    return tmp_path, seal(tmp_path, splits)


def leaked_of(
    shards: Path, manifest: Manifest, split: str, trained_digest: str, trained: Path | None
) -> SeenBefore:
    facts = read_facts(open_split(shards, manifest, split=split))
    hashes = np.array([one.key_hash for one in facts], dtype=np.uint64)
    return seen_before(
        *(manifest, shards, split, groups_of(facts), hashes),
        trained_digest=trained_digest,
        trained_shards=trained,
    )


def test_duplicates_in_train_and_val_are_leaks(duplicates: tuple[Path, Manifest]) -> None:
    shards, manifest = duplicates
    found = leaked_of(shards, manifest, "test", manifest.digest, shards)
    assert found.leaked is not None
    assert found.leaked.tolist() == [True, True, False]
    val = leaked_of(shards, manifest, "val", manifest.digest, shards)
    assert val.leaked is not None
    assert not val.leaked.any()  # its duplicate is in test, which is not used for training
    train = leaked_of(shards, manifest, "train", manifest.digest, shards)
    assert train.leaked is None


def test_leaks_are_searched_in_the_shards_of_training(
    duplicates: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """A test sample of one packing was in train in another."""
    shards, manifest = duplicates
    other = tmp_path / "other"
    other.mkdir()
    moved = [sample(2, split="test"), sample(5)]
    trained = seal(other, {"train": write_split(other, "train", [moved])})
    found = leaked_of(shards, manifest, "test", trained.digest, other)
    assert found.leaked is not None
    assert found.leaked.tolist() == [False, False, True]
    gone = leaked_of(shards, manifest, "test", trained.digest, tmp_path / "gone")
    assert gone.leaked is None
    assert "not at their place" in gone.why_unknown
    changed = leaked_of(shards, manifest, "test", "0" * 64, other)
    assert changed.leaked is None


def test_duplicates_of_either_packing_are_leaks(tmp_path: Path) -> None:
    """A group has another number where the other packing has another first sample of it."""

    def grouped(number: int, first: str, split: str = "train") -> PackedSample:
        one = sample(number, split=split)
        return PackedSample(**{**vars(one), "group": key_hash(first)})

    def packed(name: str, **samples: list[PackedSample]) -> tuple[Path, Manifest]:
        folder = tmp_path / name
        folder.mkdir()
        splits = {split: write_split(folder, split, [some]) for split, some in samples.items()}
        return folder, seal(folder, splits)

    trained, its_manifest = packed(
        "trained",
        train=[sample(5), grouped(6, "tiny-train-6"), grouped(8, "tiny-left-out")],
        test=[grouped(7, "tiny-train-6"), sample(9)],
    )
    evaluated, manifest = packed(
        "evaluated",
        train=[grouped(5, "tiny-test-0")],
        # A duplicate of train-5 here, one of train-6 there, one of a sample that neither has, two
        # that the model has not seen.
        test=[
            *(grouped(0, "tiny-test-0", "test"), grouped(1, "tiny-left-out", "test")),
            *(sample(2, split="test"), sample(7), sample(9)),
        ],
    )
    found = leaked_of(evaluated, manifest, "test", its_manifest.digest, trained)
    assert found.leaked is not None
    assert found.leaked.tolist() == [True, True, False, True, False]
    num_seen = count_seen(
        evaluated, "test", {"shards_digest": its_manifest.digest, "shards": str(trained)}
    )
    assert num_seen == (3, "")
    # Without the index of a split that the model was not trained on, what train shows stays known.
    (trained / its_manifest.splits["test"].shards[0].index).unlink()
    found = leaked_of(evaluated, manifest, "test", its_manifest.digest, trained)
    assert found.leaked is not None
    assert found.leaked.tolist() == [True, True, False, False, False]


def test_another_data_set_is_searched_for_equal_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys differ even where it is the same file, packed under another name."""
    trained, other = tmp_path / "trained", tmp_path / "other"
    for directory in (trained, other):
        directory.mkdir()

    def renamed(number: int, **changed: Any) -> PackedSample:
        key = f"else-{number}"
        return PackedSample(
            **{**vars(sample(number)), "key": key, "group": key_hash(key), **changed}
        )

    long = "  A text that is long enough\tto be no accident "
    samples = [
        *(renamed(0), renamed(5), renamed(6, text=long)),
        *(renamed(7, text="So cute"), renamed(8, image=picture(1))),
    ]
    splits = {"test": write_split(other, "test", [samples])}
    evaluated = seal(other, splits).model_copy(update={"dataset": "else"})
    first = write_split(
        *(trained, "train"),
        [[sample(0), renamed(9, text="a text that is long enough to be no accident"), sample(1)]],
    )
    manifest = seal(trained, {"train": first})
    found = leaked_of(other, evaluated, "test", manifest.digest, trained)
    assert found.by_content
    assert found.leaked is not None
    assert found.leaked.tolist() == [True, False, True, False, True]
    monkeypatch.setattr(same_content, "MOST_BYTES", 10)
    large = leaked_of(other, evaluated, "test", manifest.digest, trained)
    assert large.leaked is None
    assert "too many to be compared" in large.why_unknown


def test_shards_packed_without_a_search_for_duplicates(tmp_path: Path) -> None:
    splits = {
        split: write_split(tmp_path, split, [[sample(n, split=split) for n in range(2)]])
        for split in ("train", "test")
    }
    manifest = seal(tmp_path, splits)
    found = leaked_of(tmp_path, manifest, "test", manifest.digest, tmp_path)
    assert found.leaked is None
    assert "without looking for duplicates" in found.why_unknown
