"""Leaks of packed sets: made with a split file, so that each twin's place is known."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw import raw_tree, write_pair

from mmsa.data.index_file import key_hash, read_index
from mmsa.data.manifest import load_manifest, write_manifest
from mmsa.errors import ShardDamage, UserError
from shards.__main__ import main
from shards.duplicates.leak_counts import leak_counts
from shards.protocols_cli import add_parsers
from shards.reports.leaks import leak_report, list_leaks

# 1 to 4 train, 5 to 6 val, 7 to 10 test; twins: 1 and 5 and 7, 6 and 8, 9 and 10
SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 4
TWINS = {"1": b"A ", "5": b"A ", "7": b"A ", "6": b"B ", "8": b"B ", "9": b"C ", "10": b"C "}
FILLED = {b"A ": b"apples " * 2, b"B ": b"brown bears bring big", b"C ": b"cold coffee comes cheap"}


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaky")
    labels = ["positive,positive"] * 7 + ["negative,negative"] * 3
    raw = raw_tree(root / "raw", labels)
    for source_id, letter in TWINS.items():
        text = FILLED[letter] + b" one two three" * (letter == b"A ") + b" and so on with it"
        write_pair(raw, source_id, text=b"RT @u" + source_id.encode() + b": " + text)
    lines = [f"{number},{split}" for number, split in enumerate(SPLITS, start=1)]
    (root / "mine.csv").write_text("\n".join(["id,split", *lines]), encoding="utf-8")
    arguments = ["--protocol", f"file:{root}/mine.csv", "--samples-per-shard", "3", "--quiet"]
    assert main(["pack", "mvsa-single", str(raw), str(root / "out"), *arguments]) == 0
    return root / "out"


COUNTS = {
    "val": {"samples": 2, "train": 1, "any": 1},
    "test": {"samples": 4, "train": 1, "val": 2, "any": 2},
}


def test_counts_from_the_index_alone(leaky: Path) -> None:
    report = leak_report(leaky)
    assert report.counts == COUNTS
    assert report.by_class == {
        "val": {"negative": 0, "neutral": 0, "positive": 1},
        "test": {"negative": 1, "neutral": 0, "positive": 1},
    }


def test_each_leaked_sample_with_the_place_of_its_twins(leaky: Path) -> None:
    leaks = {(leak.key, leak.split): leak for leak in list_leaks(leaky)}
    assert {place: leak.twins_in for place, leak in leaks.items()} == {
        ("mvsa-single-5", "val"): ("train",),
        ("mvsa-single-7", "test"): ("train", "val"),
        ("mvsa-single-8", "test"): ("val",),
    }
    first = f"{key_hash('mvsa-single-1'):016x}"
    assert leaks["mvsa-single-7", "test"].group == first


def test_groups_are_in_the_index_and_in_key_json(leaky: Path) -> None:
    split = load_manifest(leaky).split("test")
    groups = np.concatenate([read_index(leaky, shard)["group"] for shard in split.shards])
    expected = {key_hash(f"mvsa-single-{n}") for n in (1, 6, 10)}  # 10 sorts before 9
    assert set(groups.tolist()) == expected


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    parser = ArgumentParser()
    add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    args.run(args)
    return capsys.readouterr().out


def test_the_command_in_words(leaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(["leaks", str(leaky)], capsys).splitlines()
    assert lines[0].startswith("mvsa-single, protocol file, hash ")
    assert lines[1:] == [
        "val: 1 of 2 samples (50.0 %) have a duplicate in another split: 1 in train",
        "    0 negative, 0 neutral, 1 positive",
        "test: 2 of 4 samples (50.0 %) have a duplicate in another split: 1 in train, 2 in val",
        "    1 negative, 0 neutral, 1 positive",
    ]


def test_the_command_for_programs(leaky: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report: dict[str, Any] = json.loads(run(["leaks", str(leaky), "--json"], capsys))
    assert report["leaks"] == COUNTS
    assert report["protocol"]["name"] == "file"
    lines = run(["leaks", str(leaky), "--list"], capsys).splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["val", "test", "test"]


def test_protocols_lists_published_counts(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(["protocols"], capsys)
    assert "test 450 = 135 negative, 47 neutral, 268 positive" in printed
    assert "train 13,624 = 1,040 negative, 3,528 neutral, 9,056 positive" in printed
    entries = json.loads(run(["protocols", "--json"], capsys))
    assert [entry["name"] for entry in entries][:3] == ["clean", "random", "kfold:K/N"]


def test_a_set_whose_groups_were_never_looked_for(
    small_packed: Path, tmp_path: Path, leaky: Path
) -> None:
    for path in small_packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = load_manifest(tmp_path)
    source = {name: value for name, value in manifest.source.items() if name != "groups"}
    write_manifest(tmp_path, manifest.model_copy(update={"source": source}))
    with pytest.raises(UserError, match="without a search for duplicates"):
        leak_report(tmp_path)
    assert leak_report(small_packed).counts["test"]["any"] == 0


def test_a_damaged_tar_is_named(leaky: Path, tmp_path: Path) -> None:
    for path in leaky.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tar = next(iter(load_manifest(tmp_path).split("val").shards)).tar
    content = (tmp_path / tar).read_bytes()
    (tmp_path / tar).write_bytes(content.replace(b"mvsa-single-", b"mvsa-simple-"))
    with pytest.raises(ShardDamage, match=tar):
        list_leaks(tmp_path)


def test_splits_that_are_not_there() -> None:
    assert leak_counts({"a": "train"}, {"a": 1}) == {}
    assert leak_counts({"a": "test"}, {"a": 1}) == {
        "test": {"samples": 1, "train": 0, "val": 0, "any": 0}
    }
