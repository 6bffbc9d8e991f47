"""The id lists of published splits: their counts as published, and against the authors' lists."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from shards.label_rules import fuse
from shards.reports.catalogue import catalogue
from shards.splits import published
from shards.splits.protocols import protocol_hash


def test_clmlf_single_as_published() -> None:
    assert published.class_counts("mvsa-single", published.clmlf("mvsa-single")) == {
        "train": {"positive": 2147, "neutral": 376, "negative": 1088},
        "val": {"positive": 268, "neutral": 47, "negative": 135},
        "test": {"positive": 268, "neutral": 47, "negative": 135},
    }


def test_clmlf_multiple_as_published() -> None:
    assert published.class_counts("mvsa-multiple", published.clmlf("mvsa-multiple")) == {
        "train": {"positive": 9056, "neutral": 3528, "negative": 1040},
        "val": {"positive": 1131, "neutral": 440, "negative": 129},
        "test": {"positive": 1131, "neutral": 440, "negative": 129},
    }


@pytest.mark.parametrize(("dataset", "total"), [("mvsa-single", 4511), ("mvsa-multiple", 17025)])
def test_the_folds_of_cheema_et_al(dataset: str, total: int) -> None:
    tested: Counter[str] = Counter()
    for fold in range(1, 11):
        splits = published.tib10(dataset, fold)
        assert len(splits) == total
        held_out = Counter(splits.values())
        assert held_out["test"] == held_out["val"]
        assert abs(held_out["test"] - total / 10) < 1
        tested.update(number for number, split in splits.items() if split == "test")
    assert set(tested.values()) == {1}
    assert len(tested) == total


def test_the_hashes_of_whole_packs() -> None:
    hashes = {
        (fixed.dataset, fixed.name): fixed.hash for entry in catalogue() for fixed in entry.lists
    }
    assert len(hashes) == 22
    assert (
        hashes["mvsa-single", "clmlf"]
        == "1e1d11cafe297567f93be4b230347b3cc5107ad27074e092a9495a66d90ee286"
    )
    assert (
        hashes["mvsa-multiple", "clmlf"]
        == "d5962bb0fceefd6fd5290132523c0208454755debcfdda27f7b8b2cd3ab271b5"
    )
    assert (
        hashes["mvsa-single", "tib10:1"]
        == "4854aa1db837a7cd56502482e4e92b272b1cec437e4b6d1bf5bdd1b537e7635b"
    )
    assert (
        hashes["mvsa-multiple", "tib10:10"]
        == "da6f4d0f1d602d709f4440587a9834858d04efd557231b54f4bb13f225c46c6a"
    )


@pytest.mark.parametrize("dataset", ["mvsa-single", "mvsa-multiple"])
def test_against_the_authors_lists(dataset: str, shared_data: Path) -> None:
    lists = shared_data / "splits"
    with (lists / f"clmlf-{dataset}.csv").open(encoding="utf-8", newline="") as file:
        clmlf = list(csv.DictReader(file))
    ours = published.rows(dataset)
    assert protocol_hash({row["id"]: row["split"] for row in clmlf}) == protocol_hash(
        published.clmlf(dataset)
    )
    assert all(ours[row["id"]].label == row["label"] for row in clmlf)
    with (lists / f"tib10-{dataset}.csv").open(encoding="utf-8", newline="") as file:
        tib10 = list(csv.DictReader(file))
    for fold in range(1, 11):
        theirs = {}
        for row in tib10:
            held_out = "val" if str(fold) in row["val_folds"].split() else "train"
            theirs[row["id"]] = "test" if row["test_folds"] == str(fold) else held_out
        assert protocol_hash(theirs) == protocol_hash(published.tib10(dataset, fold))
    assert all(ours[row["id"]].label == row["label"] for row in tib10)


def test_the_labels_of_single_follow_from_its_label_file(shared_data: Path) -> None:
    labels_file = shared_data / "labels" / "mvsa-single.labelResultAll.txt"
    ours = published.rows("mvsa-single")
    fused = {}
    for line in labels_file.read_text("ascii").splitlines()[1:]:
        source_id, labels = line.split("\t")
        text_label, image_label = labels.strip().split(",")
        if label := fuse(text_label, image_label):
            fused[source_id] = label
    assert fused == {number: row.label for number, row in ours.items()}
