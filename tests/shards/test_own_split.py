"""The user's own split, sets without some split, and what packing says of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import jpeg, rejected

from mmsa.data.manifest import Manifest, load_manifest
from shards.__main__ import main
from shards.packing.chunks import ChunkTask, make_chunk, read_chunk
from shards.packing.settings import ImageForm
from shards.sources import get_source
from shards.splits.by_group import split_groups
from shards.splits.by_hash import SPLITS

Row = tuple[str, str, str]  # image, label, split


def table(folder: Path, rows: Sequence[Row], *, column: str = "Split") -> Path:
    for shade in range(1, 7):
        (folder / f"{shade}.jpg").write_bytes(jpeg(40 * shade))
    path = folder / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "image", "label", column])
        for number, row in enumerate(rows):
            writer.writerow([f"i{number}", f"words of the tweet number {number}", *row])
    return path


ROWS: list[Row] = [
    *[("1.jpg", "joy", "train"), ("2.jpg", "sad", "Training")] * 3,
    *[("3.jpg", "joy", "validation"), ("4.jpg", "sad", "DEV")],
    *[("5.jpg", "joy", "test"), ("6.jpg", "sad", " Testing ")],
    ("6.jpg", "sad", ""),
]


def pack(path: Path, out: Path, *options: str) -> int:
    return main(["pack", "table", str(path), str(out), "--workers", "1", *options])


def keys_of(manifest: Manifest) -> dict[str, int]:
    return {name: split.num_samples for name, split in manifest.splits.items()}


def test_a_column_of_splits_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert pack(table(tmp_path, ROWS), out) == 0
    manifest = load_manifest(out)
    assert manifest.protocol.name == "column"
    assert keys_of(manifest) == {"train": 6, "val": 2, "test": 2}
    assert rejected(out) == [
        {
            "source_id": "i10",
            "reason": "left out by the protocol",
            "detail": "its cell names no split",
        }
    ]
    assert "protocol  column" in capsys.readouterr().out
    other = tmp_path / "other"
    assert pack(table(tmp_path, ROWS, column="part"), other, "--split-column", "part") == 0
    assert load_manifest(other).protocol == manifest.protocol
    assert load_manifest(other).splits == manifest.splits


def test_another_protocol_says_that_the_column_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, ROWS)
    assert pack(path, tmp_path / "out", "--protocol", "random", "--quiet") == 0
    said = capsys.readouterr().out
    assert "note: the column 'Split' ('train' (6), 'val' (2), 'test' (2)) is not used" in said
    assert load_manifest(tmp_path / "out").protocol.name == "random"


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ("fold 3", [], "column 'Split' names 'fold 3' (1); expected train, val, test"),
        ("train", ["--ratios", "8:1:1"], "column has its own proportions; leave out --ratios"),
        ("train", ["--seed", "3"], "column is not random; leave out --seed"),
        ("train", ["--split-column", "x"], "has no column 'x'"),
    ],
)
def test_a_column_that_cannot_be_used(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    value: str,
    options: list[str],
    message: str,
) -> None:
    path = table(tmp_path, [*ROWS, ("1.jpg", "joy", value)])
    assert pack(path, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_protocol_column_needs_a_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, ROWS, column="x")
    assert pack(path, tmp_path / "out", "--protocol", "column") == 2
    assert "--protocol column needs a column of splits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ratios", "names"), [("0:0:1", ["test"]), ("0:1:1", ["val", "test"]), ("1:0:0", ["train"])]
)
def test_sets_without_some_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ratios: str, names: list[str]
) -> None:
    """They pack, verify, and show info and leaks; the next command is one that works."""
    rows: list[Row] = [(f"{1 + n % 6}.jpg", ("joy", "sad")[n % 2], "") for n in range(12)]
    out = tmp_path / "out"
    assert pack(table(tmp_path, rows, column="x"), out, "--ratios", ratios) == 0
    manifest = load_manifest(out)
    assert list(manifest.splits) == names
    assert sum(keys_of(manifest).values()) == 12
    use = f"python evaluate.py RUN --shards {out} --split {names[-1]}"
    said = capsys.readouterr().out
    assert use in said
    assert ("warning: no samples in" in said) == (ratios == "1:0:0")
    assert main(["verify", str(out), "--workers", "1"]) == 0
    assert "12 samples" in capsys.readouterr().out
    assert main(["info", str(out)]) == 0
    assert use in capsys.readouterr().out
    assert main(["info", str(out), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["splits"]) == names
    for options in ([], ["--json"], ["--list"]):
        assert main(["leaks", str(out), *options]) == 0


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.sampled_from("ab")), min_size=1, max_size=25),
    ratios=st.tuples(st.just(0), st.integers(0, 3), st.integers(0, 3)).filter(any),
    seed=st.integers(0, 9),
)
def test_nothing_is_trained_on_without_a_share_for_it(
    sizes: list[tuple[int, str]], ratios: tuple[int, int, int], seed: int
) -> None:
    groups = [
        [(f"{number:02}-{i}", label) for i in range(size)]
        for number, (size, label) in enumerate(sizes)
    ]
    shares = dict(zip(SPLITS, ratios, strict=True))
    found = set(split_groups(groups, seed=seed, ratios=shares))
    assert found <= {name for name, share in shares.items() if share}


def test_classes_come_from_samples_that_are_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label whose rows are all rejected is no class; one that was asked for is an error."""
    rows: list[Row] = [*ROWS, ("absent.jpg", "anger", "train"), ("image", "label", "Split")]
    path = table(tmp_path, rows)
    assert pack(path, tmp_path / "out") == 2  # "Split" names no split
    path = table(tmp_path, rows[:-1])
    assert pack(path, tmp_path / "out") == 0
    assert load_manifest(tmp_path / "out").classes == ("joy", "sad")
    lost = "warning: no class, because all samples with this label are rejected: 'anger' (1)\n"
    assert lost in capsys.readouterr().out
    capsys.readouterr()
    assert pack(path, tmp_path / "other", "--classes", "joy,sad,anger") == 2
    said = capsys.readouterr().err
    assert "all samples of the class 'anger' (1) are rejected" in said
    assert "Rejected in all: 1 missing image" in said


def test_a_class_that_a_held_out_split_lacks_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [*ROWS, ("1.jpg", "anger", "train")]
    assert pack(table(tmp_path, rows), tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "warning: val has no sample of 'anger'\n" in said
    assert "warning: test has no sample of 'anger'\n" in said


def test_one_class_is_told_and_not_offered_for_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [(image, "joy", split) for image, _, split in ROWS]
    assert pack(table(tmp_path, rows), tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "warning: there is one class, 'joy': nothing to tell apart\n" in said
    assert "launch run" not in said


def test_a_set_to_evaluate_may_lack_a_class_of_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the model's classes all the same; a name that the labels spell otherwise is told."""
    rows: list[Row] = [("1.jpg", "joy", "test"), ("2.jpg", "sad", "test")]
    path = table(tmp_path, rows)
    assert pack(path, tmp_path / "out", "--classes", "joy,sad,anger") == 0
    assert load_manifest(tmp_path / "out").classes == ("joy", "sad", "anger")
    assert "warning: test has no sample of 'anger'\n" in capsys.readouterr().out
    assert pack(path, tmp_path / "other", "--classes", "joy,anger") == 2
    assert "Labels found: 'joy' (1), 'sad' (1)" in capsys.readouterr().err
    path = table(tmp_path, [*ROWS, ("1.jpg", "anger", "test")])
    assert pack(path, tmp_path / "trained") == 0
    assert "warning: train has no sample of 'anger'\n" in capsys.readouterr().out


def test_reasons_that_take_much_of_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [*ROWS, *[(f"absent-{n}.jpg", "joy", "train") for n in range(4)]]
    assert pack(table(tmp_path, rows), tmp_path / "some") == 0
    said = capsys.readouterr().out
    assert "warning: 'missing image' takes 4 of 15 samples (27 %): for example id 'i11' (" in said
    assert said.count("does not exist") == 3
    assert main(["info", str(tmp_path / "some")]) == 0
    assert "warning: 'missing image' takes 4 of 15 samples (27 %)" in capsys.readouterr().out
    rows = [*ROWS, *[(f"absent-{n}.jpg", "joy", "train") for n in range(12)]]
    path = table(tmp_path, rows)
    assert pack(path, tmp_path / "most") == 2
    said = capsys.readouterr().err
    assert pack(path, tmp_path / "most", "--resume") == 2  # of what the first one kept
    assert capsys.readouterr().err == said
    assert "'missing image' takes 12 of 23 samples (52 %)" in said
    assert "id 'i11' (" in said
    assert "--allow-dropped" in said
    assert "Paths of images are relative to the folder of the table" in said
    assert "--keep-missing" not in said  # which keeps rows that name no image
    assert pack(path, tmp_path / "most", "--resume", "--allow-dropped") == 0
    assert keys_of(load_manifest(tmp_path / "most")) == {"train": 6, "val": 2, "test": 2}
    for line in rejected(tmp_path / "most"):
        assert line.keys() == {"source_id", "reason", "detail"}


def test_a_path_to_no_file_is_a_fact_of_the_rejection(tmp_path: Path) -> None:
    """Not the words of its detail, which end as a cell or a folder's name may."""
    path = table(tmp_path, [("1.jpg", "joy", "train"), ("", "sad", "train"), ("7.jpg", "joy", "")])
    (tmp_path / "8.jpg").symlink_to("nowhere.jpg")  # found out when it is opened
    with path.open("a") as file:
        file.write("i3,words,8.jpg,joy,\n")
    raw = get_source("table").open_raw(path, {})
    form = ImageForm()
    chunk = make_chunk(ChunkTask(str(tmp_path), 0, list(raw.items), form, "fingerprint"))
    kept = read_chunk(tmp_path, 0, "fingerprint")
    assert kept is not None
    for found in (chunk, kept):
        facts = [(item.source_id, str(item.reason), item.no_file) for item in found.rejected]
        assert facts == [
            ("i1", "missing image", False),
            ("i2", "missing image", True),
            ("i3", "missing image", True),
        ]


def test_labels_below_zero_are_a_value_of_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Row] = [(f"{1 + n % 6}.jpg", str(n % 3 - 1), "train") for n in range(6)]
    assert pack(table(tmp_path, rows), tmp_path / "out", "--classes", "-1,0,1") == 0
    assert load_manifest(tmp_path / "out").classes == ("-1", "0", "1")
    assert "usage" not in capsys.readouterr().err


def test_split_files_of_other_programs(tmp_path: Path) -> None:
    path = table(tmp_path, ROWS[:-1], column="x")
    lines = [f"i{n};{split.strip()}" for n, (_, _, split) in enumerate(ROWS[:-1])]
    for name, content in (
        ("a.csv", "\n".join(["id;split", *lines]).encode("utf-16")),
        ("b.csv", "\n".join(["sep=;", "id;split", *lines]).encode()),
        ("mac.csv", "\r".join(["sep=;", "id;split", *lines]).encode()),
        ("mixed.csv", "\r\n".join(["id;split", "\r".join(lines[:3]), *lines[3:], ""]).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        out = tmp_path / f"out-{name}"
        assert pack(path, out, "--protocol", f"file:{tmp_path / name}") == 0
        assert keys_of(load_manifest(out)) == {"train": 6, "val": 2, "test": 2}


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("x" * 1_000_001, "field larger than field limit ("),
        ('"a 5 inch screen', "unexpected end of data, "),
        ('"so" he said', "',' expected after '\"', "),
    ],
    ids=["long", "open", "quotes"],
)
def test_a_split_file_that_is_no_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str, problem: str
) -> None:
    path = table(tmp_path, ROWS)
    file = tmp_path / "splits.csv"
    file.write_text(f"id,split,text\ni0,train,short\ni1,val,{cell}\ni2,test,words\n")
    assert pack(path, tmp_path / "out", "--protocol", f"file:{file}") == 2
    said = capsys.readouterr().err
    assert f"the split file {file} is not a CSV file: {problem}" in said
    assert "in the row that starts at line 3. It needs only the columns id and split" in said
