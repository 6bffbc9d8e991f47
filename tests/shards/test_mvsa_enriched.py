"""The enriched set: headings, folders at either depth, spreadsheet damage, contradictions."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from raw import jpeg
from reading import opened, outcomes, read

from mmsa.errors import UserError
from shards.sources.mojibake import is_mojibake, repair_line_ends, undo_mojibake
from tests.workbooks import xlsx

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")

ROWS: list[Sequence[str | float]] = [
    ("File Name", "Caption", "LABEL"),
    ("1.txt", " first tweet ", "positive"),
    ("2.txt", "second tweet", "negative"),
    ("3.txt", "third tweet", "neutral"),
]
CLASSES = {"1": "positive", "2": "Negative", "3": "Neutral"}


def pictures(folder: Path, classes: dict[str, str], *, suffix: str = ".jpg") -> None:
    for source_id, name in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{source_id}{suffix}").write_bytes(jpeg(int(source_id)))


def tree(raw: Path, rows: Sequence[Sequence[str | float]] = ROWS) -> Path:
    pictures(raw / "Images", CLASSES)
    xlsx(raw / "LabeledText.xlsx", rows)
    return raw


def test_as_its_authors_ship_it(tmp_path: Path) -> None:
    examples, rejected = read("mvsa-enriched", tree(tmp_path))
    assert rejected == []
    assert [(e.key, e.text, e.label) for e in examples] == [
        ("mvsa-enriched-1", "first tweet", "positive"),
        ("mvsa-enriched-2", "second tweet", "negative"),
        ("mvsa-enriched-3", "third tweet", "neutral"),
    ]
    assert examples[1].image_path == tmp_path / "Images" / "Negative" / "2.jpg"
    assert examples[0].text_label is None
    assert opened("mvsa-enriched", tmp_path).label_rule == "given"


@pytest.mark.parametrize(
    "head",
    [("ID", "Tweet", "Sentiment"), ("file name", "TEXT", "label"), ("id", "caption", "LABEL ")],
)
@pytest.mark.parametrize("folder", ["images", "Images/Images", "IMAGES/images"])
@pytest.mark.parametrize("sheet", ["xlsx", "csv"])
def test_other_copies(tmp_path: Path, head: tuple[str, ...], folder: str, sheet: str) -> None:
    pictures(tmp_path / folder, {"1": "Positive", "2": "NEGATIVE", "3": "neutral"}, suffix=".JPG")
    rows: list[Sequence[str | float]] = [
        head,
        (1.0, "a, b", "Positive"),
        (2.0, "second", " NEGATIVE"),
        (3.0, "third\nline", "neutral"),
    ]
    if sheet == "xlsx":
        xlsx(tmp_path / "labeledText.xlsx", rows)
    else:
        with (tmp_path / "data.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([[c if c != 1.0 else "1" for c in row] for row in rows[:2]])
            csv.writer(file).writerows([("2", *rows[2][1:]), ("3", *rows[3][1:])])
    examples, rejected = read("mvsa-enriched", tmp_path)
    assert rejected == []
    assert [(e.source_id, e.text, e.label) for e in examples] == [
        ("1", "a, b", "positive"),
        ("2", "second", "negative"),
        ("3", "third\nline", "neutral"),
    ]


def wrong(text: str) -> str:
    """`text` in GB18030, taken for Windows-1252 as spreadsheets do."""
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode("gb18030")
    )


def test_spreadsheet_damage_is_undone_and_counted(tmp_path: Path) -> None:
    rows = list(ROWS[:1])
    rows += [
        ("1.txt", wrong("wait\u2026 for it\u2026"), "positive"),
        ("2.txt", "one_x000D_\ntwo", "negative"),
        ("3.txt", wrong("#\u5ec3\u589f \u2026"), "neutral"),
    ]
    raw = tree(tmp_path, rows)
    data = opened("mvsa-enriched", raw)
    texts = [item.text for item in data.items]  # type: ignore[union-attr]
    assert texts == ["wait\u2026 for it\u2026", "one\ntwo", "#\u5ec3\u589f \u2026"]
    assert data.facts() == {
        "normalize": [],
        "mojibake_repaired": 2,
        "mojibake_left": 0,
        "line_ends_repaired": 1,
    }


@pytest.mark.parametrize(
    "text", ["caf\u00e9 au lait", "na\u00efve", "r\u00e9sum\u00e9s", "wait\u2026"]
)
def test_western_words_are_no_damage(tmp_path: Path, text: str) -> None:
    raw = tree(tmp_path, [ROWS[0], ("1.txt", text, "positive"), *ROWS[2:]])
    examples, _ = read("mvsa-enriched", raw)
    assert examples[0].text == text


def test_mojibake() -> None:
    assert wrong("\u2026") == "\u00a1\u00ad"
    for text in ("\u2026", "#\u5ec3\u589f", "\u6211\u7684\U0001f600", "plain"):
        assert undo_mojibake(wrong(text)) == text
    assert undo_mojibake("\u2026\u2026\u6211") is None
    assert undo_mojibake("caf\u00e9") is None
    assert is_mojibake([wrong("\u2026"), "plain", "na\u00efve"])
    assert not is_mojibake([wrong("\u2026"), "na\u00efve", "caf\u00e9"])
    assert not is_mojibake(["plain"])


def test_line_ends() -> None:
    assert repair_line_ends("a_x000D_\nb_x000d_c\r\nd\re\nf") == "a\nb\nc\nd\ne\nf"


def test_contradictions_and_gaps(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        ("4.txt", "in the wrong folder", "positive"),
        ("5.txt", "in two folders", "positive"),
        ("6.txt", "no picture", "positive"),
        ("7.txt", "   ", "positive"),
        ("8.txt", "odd label", "happy"),
        ("9.txt", "no label", ""),
        ("", "no id", "positive"),
        ("1.txt", " first tweet ", "positive"),
        ("2.txt", "another text", "negative"),
    ]
    raw = tree(tmp_path, rows)
    pictures(raw / "Images", {"4": "Negative", "5": "Negative", "7": "positive", "77": "Neutral"})
    pictures(raw / "Images", {"5": "positive", "8": "positive", "9": "positive"})
    examples, rejected = read("mvsa-enriched", raw)
    assert [e.source_id for e in examples] == ["1", "3"]
    assert rejected == [
        ("2", "id twice"),
        ("4", "id twice with different labels"),
        ("5", "id twice with different labels"),
        ("6", "missing image"),
        ("7", "empty text"),
        ("8", "unknown label"),
        ("9", "missing label"),
        ("", "id does not parse"),
        ("1", "id twice"),
        ("2", "id twice"),
        ("77", "no label line"),
    ]


def test_names_that_look_equal_belong_together(tmp_path: Path) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    raw = tree(tmp_path, [*ROWS, (f"{one}.TXT", "a fourth", "positive")])
    picture = raw / "Images" / "positive" / "1.jpg"
    (picture.parent / f"{two}.TIFF").write_bytes(picture.read_bytes())
    examples, rejected = read("mvsa-enriched", raw)
    assert rejected == []
    assert (examples[3].source_id, examples[3].image_path.name) == (one, f"{two}.TIFF")


def test_two_pictures_of_one_id(tmp_path: Path) -> None:
    raw = tree(tmp_path)
    pictures(raw / "Images", {"1": "positive"}, suffix=".png")
    assert read("mvsa-enriched", raw)[1] == [("1", "several files of one name")]


def test_other_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be listed"):
        opened("mvsa-enriched", tmp_path / "absent")
    with pytest.raises(UserError, match="it has none"):
        opened("mvsa-enriched", tmp_path)
    xlsx(tmp_path / "LabeledText.xlsx", ROWS)
    with pytest.raises(UserError, match="no folder Images"):
        opened("mvsa-enriched", tmp_path)
    xlsx(tmp_path / "LabeledText.xlsx", [("a", "b", "c")])
    with pytest.raises(UserError, match="no column for the id. Its columns: a, b, c"):
        opened("mvsa-enriched", tmp_path)
    (tmp_path / "LabeledText.xlsx").write_bytes(b"no workbook")
    with pytest.raises(UserError, match="cannot be read as XLSX"):
        opened("mvsa-enriched", tmp_path)
    (tmp_path / "LabeledText.xlsx").rename(tmp_path / "a.xlsx")
    (tmp_path / "b.csv").write_text("x")
    with pytest.raises(UserError, match="it has 2: a.xlsx, b.csv"):
        opened("mvsa-enriched", tmp_path)


@needs_data
def test_the_real_set(tmp_path: Path) -> None:
    raw = tmp_path / "enriched"
    subprocess.run(["bash", DATA / "enriched" / "link-images", raw], check=True)
    assert outcomes("mvsa-enriched", raw) == {"negative": 1170, "neutral": 1442, "positive": 1352}
    data = opened("mvsa-enriched", raw)
    differing = 0
    for item in data.items:
        own = DATA / "mvsa-single" / "data" / f"{item.source_id}.txt"
        texts = (own.read_bytes().decode("gb18030"), item.text)  # type: ignore[union-attr]
        # The sheet lost some quotation marks.
        first, second = (" ".join(text.replace('"', "").split()) for text in texts)
        differing += first != second
    assert differing == 0
    assert data.facts() == {
        "normalize": [],
        "mojibake_repaired": 909,
        "mojibake_left": 0,
        "line_ends_repaired": 16,
    }
