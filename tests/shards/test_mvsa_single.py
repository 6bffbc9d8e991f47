"""What the source reader takes, and what it rejects for which reason."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import reading
from raw import raw_tree, write_labels, write_pair

from mmsa.errors import UserError
from shards.__main__ import main
from shards.example import Example
from shards.sources import get_source

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")


def read(raw: Path, **options: Any) -> tuple[list[Example], list[tuple[str, str]]]:
    return reading.read("mvsa-single", raw, **options)


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
        get_source("mvsa-single").open_raw(tmp_path / "absent")
    raw_tree(tmp_path / "MVSA_Single", ["neutral,neutral"])
    with pytest.raises(UserError, match=r"Did you mean .*MVSA_Single\?"):
        get_source("mvsa-single").open_raw(tmp_path)
    write_labels(tmp_path / "bare", ["1\tneutral,neutral"])
    with pytest.raises(UserError, match="data is not a folder"):
        get_source("mvsa-single").open_raw(tmp_path / "bare")


def test_label_rules(tmp_path: Path) -> None:
    raw = raw_tree(tmp_path, ["neutral,negative", "positive,negative", "positive,positive"])
    for rule, labels, rejected in (
        ("fused", ["negative", "positive"], [("2", "labels conflict")]),
        (
            "agree",
            ["positive"],
            [("1", "labels of text and image differ"), ("2", "labels of text and image differ")],
        ),
        ("text", ["neutral", "positive", "positive"], []),
        ("image", ["negative", "negative", "positive"], []),
    ):
        found, reasons = read(raw, labels=rule)
        assert [example.label for example in found] == labels
        assert reasons == rejected
        data = reading.opened("mvsa-single", raw, labels=rule)
        assert data.label_rule == ("fusion" if rule == "fused" else rule)
        assert data.classes == ("negative", "neutral", "positive")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "soft"}, "--labels soft does not apply to a source with one annotator"),
        ({"labels": "best"}, "--labels best is not a label rule"),
        ({"text_column": "text"}, "--text-column does not apply to the source mvsa-single"),
        ({"classes": ("a", "b")}, "--classes does not apply"),
        ({"normalize": ("case",)}, "--normalize case"),
        ({"encoding": "utf-9"}, "--encoding utf-9 is not a known encoding"),
        ({"encoding": "base64"}, "--encoding base64 is not a known encoding"),
        ({"labels": "x", "normalize": ("y",)}, "2 problems"),
    ],
)
def test_options_that_do_not_apply(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    raw = raw_tree(tmp_path, ["neutral,negative"])
    with pytest.raises(UserError, match=message):
        read(raw, **options)


def test_texts_are_normalized_on_demand(tmp_path: Path) -> None:
    write_pair(tmp_path, "1", text=b"RT @a_b  see http://t.co/x\r\n")
    write_labels(tmp_path, ["1\tneutral,neutral"])
    assert read(tmp_path)[0][0].text == "RT @a_b  see http://t.co/x"
    found, _ = read(tmp_path, normalize=("urls", "mentions", "whitespace"))
    assert found[0].text == "RT @user see http"
    data = reading.opened("mvsa-single", tmp_path, normalize=("urls", "mentions"))
    assert data.facts()["normalize"] == ["urls", "mentions"]


def test_texts_that_would_also_be_utf8_are_counted(tmp_path: Path) -> None:
    write_pair(tmp_path, "1", text="caf\u00e9 au lait".encode())
    write_pair(tmp_path, "2", text="\u7b11".encode("gb18030"))  # valid in both
    write_pair(tmp_path, "3", text="\u4e2d\u6587".encode("gb18030"))
    write_pair(tmp_path, "4")
    write_labels(tmp_path, [f"{number}\tneutral,neutral" for number in range(1, 5)])
    data = reading.opened("mvsa-single", tmp_path)
    texts = [item.text for item in data.items if isinstance(item, Example)]
    assert texts[1:3] == ["\u7b11", "\u4e2d\u6587"]
    assert data.facts() == {
        "normalize": [],
        "text_encoding": "gb18030",
        "texts_beyond_ascii": 3,
        "texts_also_utf8": 2,
    }
    found, rejected = read(tmp_path, encoding="utf-8")
    assert found[0].text == "caf\u00e9 au lait"
    assert rejected == [("3", "text is not in the stated encoding")]


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\0\0"),
        ("gb18030", b"\x84\x31\x95\x33"),
    ],
)
@pytest.mark.parametrize("stated", [{}, {"encoding": "utf-8"}, {"encoding": "latin-1"}])
def test_a_byte_order_mark_decides(
    tmp_path: Path, encoding: str, mark: bytes, stated: dict[str, str]
) -> None:
    text = "sch\u00f6n \u7b11"
    write_pair(tmp_path, "1", text=mark + text.encode(encoding))
    write_labels(tmp_path, ["1\tneutral,neutral"])
    data = reading.opened("mvsa-single", tmp_path, **stated)
    assert [item.text for item in data.items if isinstance(item, Example)] == [text]
    facts = data.facts()
    assert (facts["texts_with_mark"], facts["texts_beyond_ascii"]) == (1, 0)


def test_a_copy_in_utf8_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    texts = [f"caf\u00e9 au lait {number}".encode() for number in range(9)]
    texts += ["\u4e2d\u6587".encode("gb18030"), b"plain"]
    for number, text in enumerate(texts, start=1):
        write_pair(raw, str(number), text=text)
    write_labels(raw, [f"{number}\tneutral,neutral" for number in range(1, len(texts) + 1)])
    command = ["pack", "mvsa-single", str(raw), str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "warning: 9 of the 10 texts beyond ASCII are valid UTF-8, and were read as GB18030, the "
        "encoding of this set: if they look wrong, pack again with --encoding utf-8"
    ) in said
    for options in ({"encoding": "utf-8"}, {"encoding": "gb18030"}):
        data = reading.opened("mvsa-single", raw, **options)
        list(data.items)
        assert "warnings" not in data.facts()


def test_files_are_found_in_any_letter_case_and_type(tmp_path: Path) -> None:
    for source_id in ("1", "2", "3", "4", "9"):
        write_pair(tmp_path, source_id)
    data = tmp_path / "data"
    (data / "1.jpg").rename(data / "1.JPG")
    (data / "1.txt").rename(data / "1.TXT")
    (data / "2.jpg").rename(data / "2.Jpeg")
    shutil.copyfile(data / "3.jpg", data / "3.JPG")  # the usual name comes first
    (data / "4.jpg").rename(data / "4.png")
    shutil.copyfile(data / "4.png", data / "4.JPG")
    (data / "9.jpg").unlink()
    (data / "9.txt").rename(data / "9.TXT")
    write_labels(tmp_path, [f"{number}\tneutral,neutral" for number in range(1, 5)])
    examples, rejected = read(tmp_path)
    assert [example.image_path.name for example in examples] == ["1.JPG", "2.Jpeg", "3.jpg"]
    assert rejected == [("4", "several files of one name"), ("9", "no label line")]


@needs_data
def test_the_whole_label_file(tmp_path: Path) -> None:
    """Published: 4,511 = 2,683 / 470 / 1,358 with 358 dropped; agreeing 1,398 / 470 / 724."""
    label_file = DATA / "labels" / "mvsa-single.labelResultAll.txt"
    shutil.copyfile(label_file, tmp_path / "labelResultAll.txt")
    (tmp_path / "data").mkdir()
    for line in label_file.read_text("ascii").splitlines()[1:]:
        (tmp_path / "data" / f"{line.split()[0]}.txt").write_bytes(b"x")
    assert reading.outcomes("mvsa-single", tmp_path) == {
        "positive": 2683,
        "neutral": 470,
        "negative": 1358,
        "labels conflict": 358,
    }
    assert reading.outcomes("mvsa-single", tmp_path, labels="agree") == {
        "positive": 1398,
        "neutral": 470,
        "negative": 724,
        "labels of text and image differ": 2277,
    }


@needs_data
def test_the_real_texts() -> None:
    raw = DATA / "mvsa-single"
    data = reading.opened("mvsa-single", raw)
    found = {item.source_id: item for item in data.items if isinstance(item, Example)}
    assert len(found) == 2210 + 372 + 1097
    assert data.total == 3964
    assert min(len(item.text) for item in found.values()) >= 3
    assert data.facts()["texts_beyond_ascii"] == 853
    assert data.facts()["texts_also_utf8"] == 0
