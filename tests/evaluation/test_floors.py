"""Floors on texts with a known outcome, and on small packed shards."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from packed import open_split, seal, write_split

from mmsa.data.index_file import key_hash
from mmsa.data.manifest import load_manifest
from mmsa.errors import ShardDamage, UserError
from mmsa.evaluation.floors.__main__ import main
from mmsa.evaluation.floors.fitting import read_texts
from mmsa.evaluation.floors.majority import majority_predictions
from mmsa.evaluation.floors.tfidf import TfidfFloor, tfidf_floor
from mmsa.evaluation.scores.metrics import compute_metrics
from mmsa.labels import LABEL_NAMES
from shards.packing.tars import PackedSample

MARKS = {0: "awful sad", 1: "plain usual", 2: "lovely happy"}


def texts_of(labels: list[int], seed: int) -> list[str]:
    """Each text has the two words of its class among filler words."""
    rng = random.Random(seed)
    fillers = [f"word{i}" for i in range(30)]
    return [f"{' '.join(rng.sample(fillers, 4))} {MARKS[label]} today" for label in labels]


TRAIN, VAL, TEST = [0, 1, 2] * 40, [0, 1, 2] * 10, [0, 0, 1, 2, 2, 2] * 4


def floor_of(test_labels: list[int]) -> TfidfFloor:
    return tfidf_floor(
        texts_of(TRAIN, 1),
        TRAIN,
        texts_of(VAL, 2),
        VAL,
        texts_of(TEST, 3),
        test_labels,
        LABEL_NAMES,
    )


def test_the_majority_class_by_hand() -> None:
    metrics = compute_metrics(majority_predictions([2, 2, 2, 0, 1], [0, 1, 2, 2], LABEL_NAMES))
    assert metrics["accuracy"] == 0.5
    assert metrics["confusion_matrix"] == [[0, 0, 1], [0, 0, 1], [0, 0, 2]]
    assert metrics["per_class"]["positive"]["f1"] == pytest.approx(2 / 3)
    assert metrics["weighted"]["f1"] == pytest.approx(1 / 3)
    # Shares with one more of each: 2/8, 2/8, 4/8; losses ln 4, ln 4, ln 2, ln 2.
    assert metrics["loss"] == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_the_majority_of_equally_frequent_classes_is_the_first() -> None:
    predictions = majority_predictions([2, 1, 1, 2], [0, 1, 2], LABEL_NAMES)
    assert predictions.predicted.tolist() == [1, 1, 1]
    assert np.isfinite(predictions.logits).all()  # a class missing from train has a share too


def test_decisive_words_are_found() -> None:
    floor = floor_of(TEST)
    assert floor.metrics["accuracy"] == 1.0
    assert floor.metrics["per_class"]["positive"]["support"] == 12
    # Every C is perfect on val here, so the smallest is chosen.
    assert floor.c == 0.01
    assert list(floor.val_weighted_f1) == [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
    assert set(floor.val_weighted_f1.values()) == {1.0}


def test_words_that_occur_in_one_text_only_are_ignored() -> None:
    texts = texts_of(TRAIN, 1)
    rare = [f"{text} only{number}" for number, text in enumerate(texts)]
    splits = (texts_of(VAL, 2), VAL, texts_of(TEST, 3), TEST, LABEL_NAMES)
    plain, with_rare = tfidf_floor(texts, TRAIN, *splits), tfidf_floor(rare, TRAIN, *splits)
    assert with_rare.num_features == plain.num_features
    assert (with_rare.predictions.logits == plain.predictions.logits).all()


def test_many_classes_have_fewer_features() -> None:
    """The optimizer's memory is features times classes."""
    words = " ".join(f"word{i}" for i in range(1500))  # and as many pairs
    texts = [f"{words} sad", f"{words} happy"] * 2
    labels = [0, 1, 0, 1]
    sizes = {}
    for num_classes in (3, 1000):
        names = [f"c{c}" for c in range(num_classes)]
        floor = tfidf_floor(*(texts, labels) * 3, names, c_grid=(1.0,))
        sizes[num_classes] = floor.num_features
    assert sizes == {3: 3003, 1000: 2000}


def test_the_test_labels_do_not_matter() -> None:
    true, turned = floor_of(TEST), floor_of([2 - label for label in TEST])
    assert turned.c == true.c
    assert (turned.predictions.logits == true.predictions.logits).all()
    assert turned.metrics["accuracy"] == pytest.approx(4 / 24)  # only the neutral ones stay right


def test_c_is_the_best_on_val() -> None:
    # Of the texts with "coin" 70 % are positive; the plain majority is negative. A weak C answers
    # negative always, a strong one reads the word: val, which goes by the word, tells them apart.
    train = [("coin", 2)] * 28 + [("coin", 0)] * 12 + [("stone", 0)] * 60
    val = [("coin", 2)] * 20 + [("stone", 0)] * 20
    columns = [[pair[side] for pair in rows] for rows in (train, val, val) for side in (0, 1)]
    floor = tfidf_floor(*columns, LABEL_NAMES)
    assert floor.val_weighted_f1[0.01] == pytest.approx(1 / 3)  # half of them called negative
    assert floor.val_weighted_f1[100.0] == 1.0
    assert floor.c == min(c for c, score in floor.val_weighted_f1.items() if score == 1.0)
    assert floor.c > 0.01


def test_a_class_missing_from_train_is_never_predicted() -> None:
    floor = tfidf_floor(
        ["sad rain", "sad rain", "happy sun", "happy sun"],
        [0, 0, 2, 2],
        ["sad", "happy"],
        [0, 2],
        ["sad", "neither", "happy"],
        [0, 1, 2],
        LABEL_NAMES,
    )
    assert floor.predictions.predicted.tolist()[0] == 0
    assert floor.predictions.predicted.tolist()[2] == 2
    assert 1 not in floor.predictions.predicted
    assert floor.metrics["loss"] > -math.log(1e-12) / 3  # the neutral one alone, finite


def test_texts_that_cannot_be_fitted() -> None:
    rest = (["a b"], [0], ["a b"], [0], LABEL_NAMES)
    with pytest.raises(UserError, match="single class"):
        tfidf_floor(["sad rain", "sad rain"], [0, 0], *rest)
    with pytest.raises(UserError, match="at least one word must occur in two"):
        tfidf_floor(["sad rain", "happy sun"], [0, 2], *rest)


def parts_of(name: str, pieces: list[list[int]]) -> list[list[PackedSample]]:
    return [
        [
            PackedSample(
                key=f"{name}-{seed}-{number:03d}",
                label=LABEL_NAMES[label],
                group=key_hash(f"{name}-{seed}-{number:03d}"),
                text=text + " ö",
                image=b"-",
                facts={},
            )
            for number, (text, label) in enumerate(zip(texts_of(piece, seed), piece, strict=True))
        ]
        for seed, piece in enumerate(pieces)
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    splits = {"train": [TRAIN[:60], TRAIN[60:]], "val": [VAL], "test": [TEST]}
    seal(tmp_path, {n: write_split(tmp_path, n, parts_of(n, p)) for n, p in splits.items()})
    return tmp_path


def texts_in(shards: Path, split: str) -> tuple[list[str], list[int]]:
    return read_texts(open_split(shards, load_manifest(shards), split=split))


def test_texts_come_in_the_order_of_the_manifest(shards: Path) -> None:
    texts, labels = texts_in(shards, "train")
    assert labels == TRAIN
    assert texts[:60] == [text + " ö" for text in texts_of(TRAIN[:60], 0)]
    assert texts[60:] == [text + " ö" for text in texts_of(TRAIN[60:], 1)]


def test_the_command_prints_both_floors(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shards), "--split", "test"]) == 0
    printed = capsys.readouterr().out
    assert "train 120, val 30, reported on: test 24" in printed
    # All three classes are equally frequent in train: the first, 8 of 24 in test.
    assert "accuracy                         0.3333        24" in printed
    assert "accuracy                         1.0000        24" in printed
    assert "C = 0.01" in printed
    assert "optimistically biased" not in printed


def test_the_default_split_is_val_with_a_warning(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shards / "test-00000.tar").unlink()  # so it is not even opened
    assert main([str(shards)]) == 0
    printed = capsys.readouterr().out
    assert "reported on: val 30" in printed
    assert "C was chosen on this split, so the scores below are optimistically" in printed


def test_damage_and_wrong_names_are_reported(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(shards), "--split", "tset"]) == 2
    assert "no split 'tset'; they have: train, val, test" in capsys.readouterr().err
    content = (shards / "test-00000.tar").read_bytes()
    (shards / "test-00000.tar").write_bytes(content[:2000])
    with pytest.raises(ShardDamage, match=r"test-00000\.tar") as caught:
        texts_in(shards, "test")
    assert caught.value.shard == "test-00000.tar"
    assert main([str(shards), "--split", "test"]) == 2
    assert main([str(shards / "nowhere")]) == 2
