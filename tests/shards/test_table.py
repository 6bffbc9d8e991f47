"""A user's own table: formats, columns, classes, ids, encodings, damaged files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import jpeg
from reading import opened, read

from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import UserError
from mmsa.labels import class_map
from shards.__main__ import main
from shards.sources.dataset_name import name_from, problem_of

ROWS: list[dict[str, Any]] = [
    {"text": 'he said "yes, no"', "image": "pictures/1.jpg", "label": "happy"},
    {"text": '"unbalanced', "image": "pictures/2.jpg", "label": "sad"},
    {"text": "caf\u00e9 \u2026", "image": "pictures/3.jpg", "label": "sad"},
]


def write(folder: Path, form: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    (folder / "pictures").mkdir(exist_ok=True)
    for number in range(1, 4):
        (folder / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    path = folder / f"table.{form}"
    names = list(rows[0])
    if form == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    elif form == "tsv":
        lines = [names, *([str(row[name]) for name in names] for row in rows)]
        path.write_text("".join("\t".join(line) + "\r\n" for line in lines), encoding="utf-8")
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows), encoding="utf-8")
    elif form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_reads_the_same(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    examples, rejected = read("table", path)
    assert rejected == []
    assert [(e.key, e.source_id, e.text, e.label) for e in examples] == [
        ("table-1", "1", 'he said "yes, no"', "happy"),
        ("table-2", "2", '"unbalanced', "sad"),
        ("table-3", "3", "caf\u00e9 \u2026", "sad"),
    ]
    assert [e.image_path for e in examples] == [
        tmp_path / "pictures" / f"{number}.jpg" for number in (1, 2, 3)
    ]
    data = opened("table", path)
    assert data.classes == ("happy", "sad")
    assert (data.dataset, data.label_rule) == ("table", "given")


def test_columns_by_option(tmp_path: Path) -> None:
    rows = [
        {"Body": "one", "Where": "pictures/1.jpg", "Mood": 1, "Text": "x", "No": "a/b.c"},
        {"Body": "two", "Where": "pictures/2.jpg", "Mood": 0, "Text": "y", "No": "\u4e03"},
    ]
    path = write(tmp_path, "jsonl", rows)
    options = {"image_column": "where", "label_column": "Mood", "id_column": "no"}
    examples, rejected = read("table", path, text_column="Body", **options)
    assert rejected == []
    assert [(e.text, e.label, e.source_id) for e in examples] == [
        ("one", "1", "a/b.c"),
        ("two", "0", "\u4e03"),
    ]
    assert [e.key for e in examples] == ["table-a_b_c-c06205148f78", "table-_-1b0542878c67"]
    assert [e.text for e in read("table", path, **options)[0]] == ["x", "y"]


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = write(
        tmp_path, "csv", [{"text": "a", "Tweet": "b", "picture": "pictures/1.jpg", "label": "d"}]
    )
    with pytest.raises(UserError, match="2 columns for the text: text, Tweet.*--text-column"):
        opened("table", path)
    with pytest.raises(
        UserError, match="no column 'body'. Its columns .separated by commas.: text, Tweet, picture"
    ):
        opened("table", path, text_column="body")
    assert len(read("table", path, text_column="tweet")[1]) == 0
    path = write(tmp_path, "csv", [{"text": "a", "label": "d"}])
    with pytest.raises(UserError, match=r"no column for the image.*image_path.*"):
        opened("table", path)


def test_classes_by_option(tmp_path: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "label": "angry"}]
    path = write(tmp_path, "csv", rows)
    data = opened("table", path, classes=("sad", "angry"))
    assert data.classes == ("sad", "angry")
    examples, rejected = read("table", path, classes=("sad", "angry"))
    assert [e.source_id for e in examples] == ["2", "3", "4"]
    assert rejected == [("1", "unknown label")]
    with pytest.raises(UserError, match="names a class twice"):
        opened("table", path, classes=("a", "a"))
    with pytest.raises(UserError, match="--labels does not apply to the source table"):
        opened("table", path, labels="text")


def test_a_column_that_is_no_label(tmp_path: Path) -> None:
    rows = [{"text": "x", "image": "pictures/1.jpg", "label": f"c{n}"} for n in range(1001)]
    with pytest.raises(UserError, match="1,001 different values"):
        opened("table", write(tmp_path, "csv", rows))
    with pytest.raises(UserError, match="has no label in its column 'label'"):
        opened("table", write(tmp_path, "csv", [{**ROWS[0], "label": " "}]))


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    lines = [
        "no json",
        "[1, 2]",
        json.dumps({"text": "a", "label": "sad"}),
        json.dumps({"text": "a", "image": None, "label": "sad"}),
        json.dumps({"image": "pictures/1.jpg", "label": "sad"}),
        json.dumps({"text": "a", "image": "pictures/1.jpg"}),
        json.dumps({"text": ["a"], "image": "pictures/1.jpg", "label": "sad"}),
        json.dumps({"text": "\ud800", "image": "pictures/1.jpg", "label": "sad"}),
        "[" * 100_000,
    ]
    with path.open("a") as file:
        file.write("\n".join(lines))
    examples, rejected = read("table", path)
    assert len(examples) == 3
    assert rejected == [
        ("4", "row does not parse"),
        ("5", "row does not parse"),
        ("6", "missing image"),
        ("7", "missing image"),
        ("8", "empty text"),
        ("9", "missing label"),
        ("10", "row does not parse"),
        ("11", "text is not in the stated encoding"),
        ("12", "row does not parse"),
    ]


def test_ids(tmp_path: Path) -> None:
    rows = [
        {"ID": "a", **ROWS[0]},
        {"ID": "b", **ROWS[1]},
        {"ID": " a", **ROWS[0]},
        {"ID": "b", **ROWS[2]},
        {"ID": "", **ROWS[2]},
    ]
    examples, rejected = read("table", write(tmp_path, "csv", rows))
    assert [e.key for e in examples] == ["table-a"]
    assert rejected == [
        ("b", "id twice"),
        ("a", "id twice"),
        ("b", "id twice"),
        ("", "id does not parse"),
    ]


def test_encodings(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    content = path.read_text("utf-8")
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(content.encode(encoding))
        assert [e.text for e in read("table", path)[0]][2] == "caf\u00e9 \u2026"
    path.write_bytes(content.encode("gb18030"))
    examples, rejected = read("table", path)
    assert len(examples) == 2
    assert rejected == [("3", "text is not in the stated encoding")]
    assert read("table", path, encoding="gb18030")[0][2].text == "caf\u00e9 \u2026"


def test_csv_fields_with_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", [{**ROWS[0], "text": "one\r\ntwo"}, ROWS[1]])
    assert [e.text for e in read("table", path)[0]] == ["one\r\ntwo", '"unbalanced']
    with path.open("a") as file:
        file.write("only,two\r\n\r\n")
    assert read("table", path)[1] == [("3", "row does not parse")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", 'text,image,label\na,b,c\n"a,b,c\nd,e,f\n', "starts at line 3"),
        ("t.csv", 'text,image,label\n"a"b,c,d\n', "is not a CSV"),
        ("t.csv", "", "has no header"),
        ("t.tsv", "\n\n", "has no header"),
        ("t.jsonl", "3\n", "has no JSON object"),
        ("t.parquet", "PAR1 no parquet", "cannot be read as Parquet"),
        ("t.xlsx", "PK no workbook", "cannot be read as XLSX"),
        ("t.txt", "text", r"expected a file named \*.csv"),
    ],
)
def test_files_damaged_as_a_whole(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        opened("table", tmp_path / name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        opened("table", tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        opened("table", tmp_path / "absent.csv")


def test_texts_in_quotes_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "tsv", [{**ROWS[0], "text": '"he said ""yes"""'}, ROWS[1]])
    data = opened("table", path)
    assert [item.text for item in data.items][0] == '"he said ""yes"""'  # type: ignore[union-attr]
    assert data.facts() == {"normalize": [], "texts_in_quotes": 1}


def test_a_parquet_file_whose_column_name_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet")
    path.write_bytes(path.read_bytes().replace(b"image", b"im\xffge"))
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        opened("table", path)


def test_the_data_set_has_the_name_of_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the manifest, the keys, the samples' JSON, the card and on the screen; or a given name."""
    table = write(tmp_path, "csv", ROWS * 3).rename(tmp_path / "my tweets.2024.csv")
    for options, name in (([], "my_tweets_2024"), (["--dataset", "moods"], "moods")):
        out = tmp_path / name
        assert main(["pack", "table", str(table), str(out), "--ratios", "1:0:0", *options]) == 0
        assert f"samples of {name}\n" in capsys.readouterr().out
        manifest = load_manifest(out)
        assert manifest.dataset == name
        reader = SplitReader(out, manifest, "train", class_map(manifest.classes, None))
        samples = [reader.read(0, row) for row in range(len(reader))]
        assert {sample.key for sample in samples} == {f"{name}-{row}" for row in range(1, 10)}
        assert {sample.meta["dataset"] for sample in samples} == {name}
        assert f"\n# {name}\n" in (out / "README.md").read_text()
    for wrong in ("my tweets", "a.b", "a/b", "", "-a", "x" * 31, "mvsa-single"):
        out = tmp_path / "wrong"
        assert main(["pack", "table", str(table), str(out), f"--dataset={wrong}"]) == 2
        assert f"--dataset {wrong} " in capsys.readouterr().err
        assert not out.exists()
    arguments = ["pack", "mvsa-single", str(tmp_path), str(tmp_path / "wrong"), "--dataset", "a"]
    assert main(arguments) == 2
    assert "--dataset does not apply to the source mvsa-single" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("table.csv", "table"),
        ("a-b_c.csv", "a-b_c"),
        ("--.csv", "table"),
        ("x.tar.csv", "x_tar"),
        ("\u63a8\u6587.csv", "table-1998b4ab"),
        ("\u63a8\u6587 2.csv", "2-2f9dc246"),
        ("synthetic.csv", "table-synthetic"),
        ("mvsa-single.csv", "table-mvsa-single"),
    ],
)
def test_names_of_files_as_names_of_sets(file: str, name: str) -> None:
    assert name_from(Path(file).stem, source="table") == name


# Bytes that are not UTF-8 are the surrogates from DC80 to DCFF in a file's name; it has no others.
_OF_FILE_NAMES = st.characters(exclude_categories=["Cs"], exclude_characters="/\0") | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF
)


@settings(max_examples=200, deadline=None)
@given(names=st.lists(st.text(_OF_FILE_NAMES, min_size=1), max_size=9))
def test_every_name_is_usable(names: list[str]) -> None:
    for stem in names:
        name = name_from(stem, source="folder")
        assert problem_of(name) is None
        longest = f"{name}-{'x' * 64}.json"
        assert len(longest.encode()) <= 100  # what a ustar header has room for
