"""What the source reader takes, and what it rejects for which reason."""

import os
from pathlib import Path

import pytest
from raw import raw_tree, write_labels, write_pair

from mmsa.errors import UserError
from shards.example import Example, Rejected
from shards.sources.mvsa_single import open_raw


def read(raw: Path) -> tuple[list[Example], list[tuple[str, str]]]:
    """(examples, (source id, reason) of each rejected one)."""
    data = open_raw(raw)
    items = list(data.items)
    assert len(items) == data.total
    examples = [item for item in items if isinstance(item, Example)]
    return examples, [(i.source_id, str(i.reason)) for i in items if isinstance(i, Rejected)]


def test_a_usable_pair(tmp_path: Path) -> None:
    examples, rejected = read(raw_tree(tmp_path, ["neutral,negative"]))
    assert rejected == []
    assert examples == [
        Example(
            key="mvsa-single-1",
            source_id="1",
            dataset="mvsa-single",
            text="tweet number 1",
            image_path=tmp_path / "data" / "1.jpg",
            label="negative",
            text_label="neutral",
            image_label="negative",
        )
    ]


@pytest.mark.parametrize(
    "header", [b"ID\ttext,image\r\n", b"id\ttext,image\n", b"", b"\xef\xbb\xbf"]
)
def test_the_header_is_optional(tmp_path: Path, header: bytes) -> None:
    write_pair(tmp_path, "5")
    (tmp_path / "labelResultAll.txt").write_bytes(header + b"5\tneutral,neutral\n\r\n\n")
    examples, rejected = read(tmp_path)
    assert [example.source_id for example in examples] == ["5"]
    assert rejected == []


def test_text_is_gb18030_even_where_it_is_valid_utf8(tmp_path: Path) -> None:
    # D0 A6 is one Cyrillic letter in UTF-8, and the Chinese word for laughing in GB18030.
    write_pair(tmp_path, "1", text=b'"\xd0\xa6 unbalanced  \r\n')
    write_labels(tmp_path, ["1\tpositive,positive"])
    examples, _ = read(tmp_path)
    assert examples[0].text == '"\u7b11 unbalanced'


def test_text_that_is_not_gb18030_or_empty_or_missing(tmp_path: Path) -> None:
    write_pair(tmp_path, "1", text=b"caf\xe9\xff")
    write_pair(tmp_path, "2", text=b" \r\n\t\r\n")
    write_pair(tmp_path, "3", text=b"")
    write_pair(tmp_path, "4")
    (tmp_path / "data" / "4.txt").unlink()
    write_pair(tmp_path, "5")
    (tmp_path / "data" / "5.txt").unlink()
    (tmp_path / "data" / "5.txt").mkdir()
    write_labels(tmp_path, [f"{number}\tpositive,positive" for number in range(1, 6)])
    assert read(tmp_path) == (
        [],
        [
            ("1", "text is not GB18030"),
            ("2", "empty text"),
            ("3", "empty text"),
            ("4", "missing text"),
            ("5", "unreadable text"),
        ],
    )


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    raw_tree(tmp_path, ["positive,positive"])
    (tmp_path / "data" / "1.txt").unlink()
    os.mkfifo(tmp_path / "data" / "1.txt")
    assert read(tmp_path) == ([], [("1", "unreadable text")])


@pytest.mark.parametrize(
    ("line", "source_id", "reason"),
    [
        ("7", "7", "label line does not parse"),
        ("7 positive,positive", "7 positive,positive", "id does not parse"),
        ("7\tpositive", "7", "label line does not parse"),
        ("7\tpositive,positive,positive", "7", "label line does not parse"),
        (
            "7\tpositive,neutral\tneutral,neutral\tpositive,neutral",
            "7",
            "label line does not parse",
        ),
        ("7\thappy,positive", "7", "unknown label"),
        ("7\tpositive,", "7", "unknown label"),
        ("7\tPositive,positive", "7", "unknown label"),
        ("../7\tpositive,positive", "../7", "id does not parse"),
        ("7.1\tpositive,positive", "7.1", "id does not parse"),
        ("\tpositive,positive", "", "id does not parse"),
        ("\u4e03\tpositive,positive", "\u4e03", "id does not parse"),
        ("7\tpositive,negative", "7", "labels conflict"),
    ],
)
def test_lines_that_give_no_label(tmp_path: Path, line: str, source_id: str, reason: str) -> None:
    raw_tree(tmp_path, ["neutral,neutral"])
    write_labels(tmp_path, ["1\tneutral,neutral", line])
    examples, rejected = read(tmp_path)
    assert [example.source_id for example in examples] == ["1"]
    assert rejected == [(source_id, reason)]


def test_an_id_twice(tmp_path: Path) -> None:
    for source_id in ("1", "2", "3"):
        write_pair(tmp_path, source_id)
    write_labels(
        tmp_path,
        [
            "1\tpositive,positive",
            "2\tpositive,positive",
            "1\tpositive,positive",
            "2\tpositive,neutral",
            "3\tneutral,neutral",
            "3\tneutral",
        ],
    )
    examples, rejected = read(tmp_path)
    assert [example.source_id for example in examples] == ["1", "3"]
    assert rejected == [
        ("2", "id twice with different labels"),
        ("1", "label line repeated"),
        ("2", "id twice with different labels"),
        ("3", "label line does not parse"),
    ]


def test_files_without_a_label_line_are_listed_after_the_lines(tmp_path: Path) -> None:
    for source_id in ("1", "9", "8"):
        write_pair(tmp_path, source_id)
    (tmp_path / "data" / "9.jpg").unlink()
    (tmp_path / "data" / "notes.md").write_text("no part of the set")
    with open(os.fsencode(tmp_path / "data") + b"/\xff.jpg", "wb"):
        pass
    write_labels(tmp_path, ["1\tneutral,neutral", "3\tneutral,neutral"])
    _, rejected = read(tmp_path)
    assert rejected == [
        ("3", "missing text"),
        ("8", "no label line"),
        ("9", "no label line"),
        ("\\xff", "no label line"),
    ]


def test_a_layout_that_is_not_the_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labelResultAll.txt cannot be read .*ID.txt"):
        open_raw(tmp_path / "absent")
    raw_tree(tmp_path / "MVSA_Single", ["neutral,neutral"])
    with pytest.raises(UserError, match=r"Did you mean .*MVSA_Single\?"):
        open_raw(tmp_path)
    write_labels(tmp_path / "bare", ["1\tneutral,neutral"])
    with pytest.raises(UserError, match="data is no folder"):
        open_raw(tmp_path / "bare")
