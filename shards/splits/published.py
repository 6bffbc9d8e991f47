"""The published splits of MVSA: the split of each id, taken from their authors' lists.

`protocol_data/DATASET.csv.gz` has a line per id: the fused label, the split of CLMLF (empty where
CLMLF leaves the id out), the fold of Cheema et al. in which it is test, and those in which it is
val. It contains no tweets.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import Counter
from functools import cache
from importlib import resources
from typing import NamedTuple

from shards.splits.by_hash import SPLITS

DATASETS = ("mvsa-single", "mvsa-multiple")
NUM_FOLDS = 10  # of Cheema et al.


class PublishedRow(NamedTuple):
    """One id of the lists. `tib10_test` is a fold from 1 to 10, `tib10_val` any number of them."""

    label: str
    clmlf: str
    tib10_test: int
    tib10_val: frozenset[int]


@cache
def rows(dataset: str) -> dict[str, PublishedRow]:
    """Id -> row of one of `DATASETS`."""
    file = resources.files("shards.splits") / "protocol_data" / f"{dataset}.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode("ascii")
    return {
        line["id"]: PublishedRow(
            line["label"],
            line["clmlf"],
            int(line["tib10_test"]),
            frozenset(int(fold) for fold in line["tib10_val"].split()),
        )
        for line in csv.DictReader(io.StringIO(text))
    }


def clmlf(dataset: str) -> dict[str, str]:
    """Id -> split of the one split that CLMLF (Li et al., Findings of NAACL 2022) published."""
    return {number: row.clmlf for number, row in rows(dataset).items() if row.clmlf}


def tib10(dataset: str, fold: int) -> dict[str, str]:
    """Id -> split of fold `fold`, 1 to 10, of Cheema et al. (MMPT at ICMR 2021)."""
    assert 1 <= fold <= NUM_FOLDS, fold
    splits = {}
    for number, row in rows(dataset).items():
        if row.tib10_test == fold:
            splits[number] = "test"
        else:
            splits[number] = "val" if fold in row.tib10_val else "train"
    return splits


def class_counts(dataset: str, splits: dict[str, str]) -> dict[str, dict[str, int]]:
    """Split -> class -> number of ids, by the fused labels of the lists."""
    counts = Counter((split, rows(dataset)[number].label) for number, split in splits.items())
    classes = sorted({row.label for row in rows(dataset).values()})
    return {split: {label: counts[split, label] for label in classes} for split in SPLITS}
