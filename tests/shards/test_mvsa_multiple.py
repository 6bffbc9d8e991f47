"""Three annotators: the format, the majority, the votes; and the source for made-up sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw import raw_tree, write_labels, write_pair
from reading import opened, read

from mmsa.errors import UserError
from shards.synthetic import write_raw


def tree(raw: Path, triples: list[str]) -> Path:
    """Sample 1 has the first of `triples`, "text,image text,image text,image"."""
    lines = []
    for number, triple in enumerate(triples, start=1):
        write_pair(raw, str(number))
        lines.append("\t".join([str(number), *triple.split()]))
    write_labels(raw, lines)
    header = "ID\ttext,image\ttext,image\ttext,image"
    file = raw / "labelResultAll.txt"
    file.write_bytes(file.read_bytes().replace(b"ID\ttext,image", header.encode(), 1))
    return raw


TRIPLES = [
    "positive,neutral positive,positive negative,neutral",  # positive
    "neutral,negative neutral,negative positive,negative",  # negative
    "neutral,neutral neutral,neutral neutral,neutral",  # neutral
    "positive,negative positive,negative neutral,neutral",  # conflict
    "positive,positive neutral,positive negative,positive",  # no majority of text
    "positive,positive positive,neutral positive,negative",  # no majority of image
]


def test_majority_then_fusion(tmp_path: Path) -> None:
    raw = tree(tmp_path, TRIPLES)
    examples, rejected = read("mvsa-multiple", raw)
    assert [(e.key, e.label, e.text_label, e.image_label) for e in examples] == [
        ("mvsa-multiple-1", "positive", "positive", "neutral"),
        ("mvsa-multiple-2", "negative", "neutral", "negative"),
        ("mvsa-multiple-3", "neutral", "neutral", "neutral"),
    ]
    assert rejected == [
        ("4", "labels conflict"),
        ("5", "no majority of annotators"),
        ("6", "no majority of annotators"),
    ]
    assert examples[0].votes == (
        ("positive", "neutral"),
        ("positive", "positive"),
        ("negative", "neutral"),
    )
    assert examples[0].soft is None
    assert opened("mvsa-multiple", raw).label_rule == "majority-fusion"


def test_the_other_rules(tmp_path: Path) -> None:
    raw = tree(tmp_path, TRIPLES)
    assert [e.source_id for e in read("mvsa-multiple", raw, labels="agree")[0]] == ["3"]
    texts = [(e.source_id, e.label) for e in read("mvsa-multiple", raw, labels="text")[0]]
    assert texts == [
        ("1", "positive"),
        ("2", "neutral"),
        ("3", "neutral"),
        ("4", "positive"),
        ("6", "positive"),
    ]
    examples, _ = read("mvsa-multiple", raw, labels="soft")
    assert [e.source_id for e in examples] == ["1", "2", "3"]
    assert examples[0].soft == {"negative": 1 / 3, "neutral": 0.0, "positive": 2 / 3}
    assert examples[1].soft == {"negative": 1.0, "neutral": 0.0, "positive": 0.0}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("9\tpositive,positive", "label line does not parse"),
        ("9\tpositive,positive\tpositive,positive", "label line does not parse"),
        ("9\tpositive,positive\tpositive\tpositive,positive", "label line does not parse"),
        ("9\tpositive,positive\tpositive,good\tpositive,positive", "unknown label"),
        ("9\tpositive,positive\t\tpositive,positive", "label line does not parse"),
        ("x.9\tpositive,positive\tpositive,positive\tpositive,positive", "id does not parse"),
    ],
)
def test_lines_that_give_no_label(tmp_path: Path, line: str, reason: str) -> None:
    raw = tree(tmp_path, TRIPLES[:1])
    with (raw / "labelResultAll.txt").open("ab") as file:
        file.write(f"{line}\r\n".encode())
    examples, rejected = read("mvsa-multiple", raw)
    assert [e.source_id for e in examples] == ["1"]
    assert rejected == [(line.split("\t")[0], reason)]


def test_tabs_at_the_end_of_a_line(tmp_path: Path) -> None:
    raw = tree(tmp_path, TRIPLES[:1])
    file = raw / "labelResultAll.txt"
    file.write_bytes(file.read_bytes().rstrip() + b"\t\t \r\n")
    assert len(read("mvsa-multiple", raw)[0]) == 1


def test_empty_files(tmp_path: Path) -> None:
    raw = tree(tmp_path, TRIPLES[:3])
    (raw / "data" / "1.txt").write_bytes(b"")
    (raw / "data" / "2.jpg").write_bytes(b"")  # found when the picture is read
    examples, rejected = read("mvsa-multiple", raw)
    assert [e.source_id for e in examples] == ["2", "3"]
    assert rejected == [("1", "empty text")]


def test_the_other_sets_label_file_is_named(tmp_path: Path) -> None:
    raw = raw_tree(tmp_path / "single", ["positive,positive"])
    item = next(iter(opened("mvsa-multiple", raw).items))
    assert "the source mvsa-single" in item.detail  # type: ignore[union-attr]
    raw = tree(tmp_path / "multiple", TRIPLES[:1])
    item = next(iter(opened("mvsa-single", raw).items))
    assert "the source mvsa-multiple" in item.detail  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"layout of MVSA-Multiple.*text,image<TAB>text,image"):
        opened("mvsa-multiple", tmp_path / "absent")


def test_a_made_up_set_keeps_that_name(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", num_samples=50, seed=0, quiet=True)
    examples, rejected = read("synthetic", tmp_path / "raw")
    assert (len(examples), len(rejected)) == (48, 2)
    assert {e.dataset for e in examples} == {"synthetic"}
    assert examples[0].key.startswith("synthetic-")
    with pytest.raises(UserError, match="make a set first: python -m shards synthetic"):
        opened("synthetic", tmp_path / "absent")
