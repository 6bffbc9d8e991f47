"""The real data next to the checkout: its counts, and that it trains."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from harness import TINY, metric_lines

from evaluate import main as evaluate_main
from mmsa.data.manifest import load_manifest
from shards.__main__ import main as shards_main
from train import main as train_main


@pytest.fixture(scope="module")
def packed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "shards"
    raw = str(shared_data / "mvsa-single")
    assert shards_main(["pack", "mvsa-single", raw, str(out), "--quiet"]) == 0
    return out


def test_the_counts_are_those_of_its_readme(packed: Path) -> None:
    manifest = load_manifest(packed)
    assert manifest.source["read"] == 3964
    assert manifest.source["dropped"] == {"labels conflict": 285}
    totals = {
        name: sum(split.classes[name] for split in manifest.splits.values())
        for name in manifest.classes
    }
    assert totals == {"positive": 2210, "neutral": 372, "negative": 1097}
    # 8:1:1 within each label, by largest remainder
    sizes = {name: split.num_samples for name, split in manifest.splits.items()}
    assert sizes == {"train": 2943, "val": 368, "test": 368}


def test_a_stock_reader_reads_every_shard(packed: Path) -> None:
    import webdataset as wds

    manifest = load_manifest(packed)
    tars = sorted(str(path) for path in packed.glob("*.tar"))
    keys = set()
    for sample in wds.WebDataset(tars, shardshuffle=False):
        assert {"jpg", "txt", "json"} <= sample.keys()
        sample["txt"].decode("utf-8")
        keys.add(sample["__key__"])
    assert len(keys) == sum(split.num_samples for split in manifest.splits.values()) == 3679
    for split in manifest.splits.values():
        for shard in split.shards:
            content = (packed / shard.tar).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard.tar_sha256


def test_it_trains_and_evaluates(packed: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"data.shards={packed}", f"run.dir={tmp_path}", "train.max_steps=2"]
    assert train_main(settings) == 0
    assert metric_lines(tmp_path, "validation")[0]["step"] == 2
    assert evaluate_main([str(tmp_path), "--split", "val"]) == 0
