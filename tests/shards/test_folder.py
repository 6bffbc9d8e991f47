"""A folder for each class: depths, odd names, missing and double files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from raw import jpeg
from raw import rejected as rejected_lines
from reading import opened, read

from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError
from mmsa.raw_files.file_names import IMAGE_SUFFIXES
from shards.__main__ import main


def pair(raw: Path, name: str, *, suffix: str = ".jpg", text: bytes = b"a text") -> None:
    path = raw / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(1))
    (raw / f"{name}.txt").write_bytes(text)


def test_classes_are_folders(tmp_path: Path) -> None:
    pair(tmp_path, "sad/b")
    pair(tmp_path, "happy/deep/er/a", suffix=".PNG", text=b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    pair(tmp_path, "happy/x.y z")
    examples, rejected = read("folder", tmp_path, dataset="moods")
    assert rejected == []
    assert [(e.key, e.source_id, e.text, e.label) for e in examples] == [
        ("moods-happy_deep_er_a-a23cbd4d58d5", "happy/deep/er/a", "caf\u00e9", "happy"),
        ("moods-happy_x_y_z-d06fa1186d4a", "happy/x.y z", "a text", "happy"),
        ("moods-sad_b-b532e16bcb70", "sad/b", "a text", "sad"),
    ]
    assert examples[0].image_path == tmp_path / "happy" / "deep" / "er" / "a.PNG"
    assert opened("folder", tmp_path).classes == ("happy", "sad")
    assert opened("folder", tmp_path, classes=("sad", "happy")).classes == ("sad", "happy")
    assert read("folder", tmp_path, classes=("sad",))[1] == [
        ("happy/deep/er/a", "unknown label"),
        ("happy/x.y z", "unknown label"),
    ]


def test_gaps_and_doubles(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "7"):
        pair(tmp_path, name)
    (tmp_path / "a" / "1.jpg").unlink()
    (tmp_path / "a" / "2.txt").unlink()
    (tmp_path / "a" / "3.webp").write_bytes(jpeg(3))
    (tmp_path / "a" / "4.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a" / "5.txt").write_bytes(b" \n")
    (tmp_path / "a" / "notes.md").write_text("no part of it")
    (tmp_path / "a" / ".hidden.jpg").write_bytes(b"")
    with open(os.fsencode(tmp_path / "a") + b"/\xff.jpg", "wb"):
        pass
    examples, rejected = read("folder", tmp_path)
    assert [e.source_id for e in examples] == ["a/6"]
    assert rejected == [
        ("7", "not in a class folder"),
        ("a/1", "missing image"),
        ("a/2", "missing text"),
        ("a/3", "several files of one name"),
        ("a/4", "text is not in the stated encoding"),
        ("a/5", "empty text"),
        ("a/\\xff", "missing text"),
    ]
    data = opened("folder", tmp_path)
    assert data.facts() == {"normalize": [], "other_files": 2}
    assert len(read("folder", tmp_path, encoding="latin-1")[0]) == 2


def test_names_that_look_equal_belong_together(tmp_path: Path) -> None:
    """One character for an accented letter, or two, as macOS writes them."""
    one, two = "caf\u00e9", "cafe\u0301"
    pair(tmp_path, f"glad/{one}", text="sch\u00f6n".encode())
    (tmp_path / "glad" / f"{one}.txt").rename(tmp_path / "glad" / f"{two}.txt")
    pair(tmp_path, f"sad/{one}", text=b"one")
    pair(tmp_path, f"sad/{two}", text=b"two")  # two samples, each of them complete
    examples, rejected = read("folder", tmp_path)
    assert rejected == []
    assert [(e.source_id, e.text) for e in examples] == [
        (f"glad/{one}", "sch\u00f6n"),
        (f"sad/{two}", "two"),
        (f"sad/{one}", "one"),
    ]


def test_any_image_type_in_any_letter_case(tmp_path: Path) -> None:
    suffixes = [s for name in IMAGE_SUFFIXES for s in (name, name.upper(), name.title())]
    for number, suffix in enumerate(suffixes):
        pair(tmp_path, f"glad/{number:02d}", suffix=suffix)
    pair(tmp_path, "glad/mark", text=b"\xff\xfea\0")
    examples, rejected = read("folder", tmp_path, encoding="utf-8")
    assert rejected == []
    assert [e.image_path.suffix for e in examples[:-1]] == suffixes
    assert examples[-1].text == "a"


def test_other_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be listed"):
        opened("folder", tmp_path / "absent")
    with pytest.raises(UserError, match="no class folders with images"):
        opened("folder", tmp_path)
    pair(tmp_path, "1")
    with pytest.raises(UserError, match="no class folders with images"):
        opened("folder", tmp_path)
    pair(tmp_path, "a/1")
    with pytest.raises(UserError, match="--text-column does not apply"):
        opened("folder", tmp_path, text_column="x")


def test_links_are_followed_once(tmp_path: Path) -> None:
    pair(tmp_path / "elsewhere", "1")
    pair(tmp_path / "raw", "a/2")
    (tmp_path / "raw" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw" / "a" / "round").symlink_to(tmp_path / "raw" / "a")
    examples, rejected = read("folder", tmp_path / "raw")
    assert [e.source_id for e in examples] == ["a/2", "b/1"]
    assert rejected == []


def test_what_a_hidden_folder_holds_is_read_where_a_link_shows_it(tmp_path: Path) -> None:
    pair(tmp_path / ".store", "1")
    pair(tmp_path, "a/2")
    (tmp_path / "b").symlink_to(tmp_path / ".store")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    examples, rejected = read("folder", tmp_path)
    assert [e.source_id for e in examples] == ["a/2", "b/1"]
    assert rejected == []


def test_names_that_are_no_unicode_are_packed_or_listed(tmp_path: Path) -> None:
    pair(tmp_path / "raw", "a/2")
    for name in (b"good", b"bad"):
        stem = os.fsencode(tmp_path / "raw" / "a") + b"/\xff" + name
        with open(stem + b".jpg", "wb") as picture, open(stem + b".txt", "wb") as text:
            picture.write(jpeg(1) if name == b"good" else b"no picture")
            text.write(b"a text")
    out = tmp_path / "out"
    arguments = ["pack", "folder", str(tmp_path / "raw"), str(out), "--ratios", "1:0:0", "--quiet"]
    assert main(arguments) == 0
    assert load_manifest(out).source["kept"] == 2
    assert [item["source_id"] for item in rejected_lines(out)] == ["a/\\xffbad"]


def test_a_text_over_the_limit_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is too large to be read at all; and the limit may be set."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in "abcd":
        pair(raw, f"glad/{name}")
    pair(raw, "sad/over", text=b"x" * 65_537)
    pair(raw, "sad/at", text=b"x" * 65_536)
    pair(raw, "sad/huge")
    os.truncate(raw / "sad" / "huge.txt", 100_000_000)
    arguments = ["pack", "folder", str(raw), str(out), "--ratios", "1:0:0", "--quiet"]
    assert main([*arguments, "--max-characters", "0"]) == 2
    assert "--max-characters 0 must be at least 1" in capsys.readouterr().err
    assert main(arguments) == 0
    assert load_manifest(out).source["dropped"] == {"text too long": 2}
    assert "max_characters" not in load_manifest(out).source["facts"]
    details = {item["source_id"]: item["detail"] for item in rejected_lines(out)}
    assert "text of 65,537 characters is over the limit of 65,536" in details["sad/over"]
    assert details["sad/huge"] == "sad/huge.txt holds 100,000,000 bytes"
    assert main([*arguments, "--max-characters", "70000", "--overwrite"]) == 0
    manifest = load_manifest(out)
    assert manifest.source["dropped"] == {"text too long": 1}
    assert manifest.max_characters == manifest.source["facts"]["max_characters"] == 70_000
    assert main(["verify", str(out), "--quiet"]) == 0
