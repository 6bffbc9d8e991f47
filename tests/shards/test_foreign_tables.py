"""Tables as other programs write them: separators, encodings, paths of images, damaged rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import jpeg
from reading import opened, read

from mmsa.errors import UserError
from mmsa.raw_files.delimited import marked_encoding, separator_of
from mmsa.raw_files.rows import open_table
from mmsa.raw_files.unique_names import unique_names
from shards.example import Rejected

LINES = [["text", "image", "label"], ["caf\u00e9; one, two", "1.jpg", "joy"], ["x", "2.jpg", "sad"]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / name).write_bytes(jpeg(int(name[0])))
    return tmp_path


def as_csv(lines: list[list[str]], separator: str = ",") -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(lines)
    return buffer.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("sep_line", [False, True])
def test_separators_and_encodings(
    folder: Path, separator: str, encoding: str, sep_line: bool
) -> None:
    content = (f"sep={separator}\r\n" if sep_line else "") + as_csv(LINES, separator)
    path = folder / "t.csv"
    path.write_bytes(content.encode(encoding))
    examples, rejected = read("table", path)
    assert rejected == []
    assert [(e.text, e.label, e.image_path.name) for e in examples] == [
        ("caf\u00e9; one, two", "joy", "1.jpg"),
        ("x", "sad", "2.jpg"),
    ]
    assert [row.number for row in open_table(path).rows()] == [2 + sep_line, 3 + sep_line]


def test_a_separator_that_only_the_first_line_names(folder: Path) -> None:
    (folder / "t.csv").write_text('"sep=^"\n' + as_csv(LINES, "^"))
    assert [e.label for e in read("table", folder / "t.csv")[0]] == ["joy", "sad"]
    (folder / "t.tsv").write_text("sep=\t\ntext\timage\tlabel\na\t1.jpg\tjoy\n")
    assert [e.text for e in read("table", folder / "t.tsv")[0]] == ["a"]


def test_names_of_columns_are_made_unique() -> None:
    assert unique_names(["a", "b", "a", "a.1", "a", ""]) == ("a", "b", "a.2", "a.1", "a.3", "")
    blanks = unique_names([""] * 20_000)  # what some programs write behind the last column
    assert (len(set(blanks)), blanks[:3]) == (20_000, ("", ".1", ".2"))


def test_blank_lines_before_the_line_that_names_the_separator(folder: Path) -> None:
    for name, content in (
        ("t.csv", "\n\nsep=^\n" + as_csv(LINES, "^")),
        ("t.tsv", "\nsep=\t\ntext\timage\tlabel\na\t1.jpg\tjoy\nb\t2.jpg\tsad\n"),
    ):
        (folder / name).write_text(content)
        assert [e.label for e in read("table", folder / name)[0]] == ["joy", "sad"]
        first = content.splitlines().index("sep=^" if "^" in content else "sep=\t") + 3
        assert next(open_table(folder / name).rows()).number == first


def test_a_comma_wins_where_it_separates_enough_columns() -> None:
    assert separator_of("text,image,label;a;b;c;d\n").character == ","
    assert separator_of("text;image, path;label\n").character == ";"
    assert separator_of("text\n").character == ","
    assert separator_of("sep=,\n").marked
    assert not separator_of("sep=a\n").marked


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9),
            min_size=3,
            max_size=3,
        ),
        max_size=4,
    ),
    separator=st.sampled_from(",;\t|"),
)
def test_every_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "t.csv"
    lines = [["text", "image", "label"], *rows]
    path.write_text(as_csv(lines, separator), encoding="utf-8", newline="")
    assert [list(row.cells.values()) for row in open_table(path).rows()] == rows


def test_a_mark_decides_whatever_the_option_says(folder: Path) -> None:
    path = folder / "t.csv"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes(as_csv(LINES).encode(encoding))
        assert read("table", path, encoding="gb18030")[0][0].text == "caf\u00e9; one, two"
    assert marked_encoding(b"text") is None
    assert marked_encoding(b"") is None


def test_the_separator_is_named_where_columns_are_missing(folder: Path) -> None:
    path = folder / "t.csv"
    for separator, name in ((",", "commas"), (";", "semicolons"), ("\t", "tabs")):
        path.write_text(as_csv([["text", "picture", "mood"]], separator))
        with pytest.raises(
            UserError, match=rf"columns .separated by {name}.: text, picture, mood\."
        ):
            opened("table", path)


def details(path: Path, **options: object) -> list[str]:
    return [r.detail for r in opened("table", path, **options).items if isinstance(r, Rejected)]


def test_rows_of_another_length(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_text("text,image,label\na,1.jpg,joy\nb,2.jpg\nc, d,1.jpg,joy\ne\n")
    assert details(path) == [
        "row 3: 2 fields, the header has 3: 1 field short",
        "row 4: 4 fields, the header has 3: 1 field too many: a text with separators must be in "
        "quotes",
        "row 5: 1 field, the header has 3: 2 fields short",
    ]


def test_a_header_in_between_is_no_sample(folder: Path) -> None:
    path = folder / "t.csv"
    path.write_text(as_csv([*LINES, LINES[0], LINES[1]]))
    assert opened("table", path).classes == ("joy", "sad")
    assert details(path) == ["row 4 repeats the header"]


def paths_of(folder: Path, *cells: str) -> list[str]:
    """Where each cell leads, relative to the folder, or the reason and detail of its rejection."""
    path = folder / "t.csv"
    path.write_text(as_csv([["text", "image", "label"], *(["x", c, "joy"] for c in cells)]))
    found = []
    for item in opened("table", path).items:
        if isinstance(item, Rejected):
            found.append(f"{item.reason}: {item.detail}")
        else:
            found.append(item.image_path.relative_to(folder).as_posix())
    return found


def test_paths_of_images(folder: Path) -> None:
    (folder / "img").mkdir()
    for name in ("p0.jpg", "p1.JPG", "p2.jpg", "p2.JPG", "a b%c.png", "w\\x.jpg"):
        (folder / "img" / name).write_bytes(jpeg(1))
    url = f"file://{quote(str(folder / 'img' / 'a b%c.png'))}"
    local = f"file://localhost{quote(str(folder / 'img' / 'p0.jpg'))}"
    assert paths_of(
        folder,
        "img/p0.jpg",
        " img\\p0.jpg ",
        "img\\p1.jpg",
        "img/p0.JPG",
        "img/p2.jpg",
        "img/p2.Jpg",  # two files are called that
        "C:\\img\\p0.jpg",
        "/img/p0.jpg",
        "img/w\\x.jpg",  # a name with a backslash, as it is written
        url,
        local,
        local.replace("//localhost", ""),
    ) == [
        "img/p0.jpg",
        "img/p0.jpg",
        "img/p1.JPG",
        "img/p0.jpg",
        "img/p2.jpg",
        "missing image: row 7: the file 'img/p2.Jpg' does not exist",
        "missing image: row 8: the file 'C:\\\\img\\\\p0.jpg' does not exist",
        "missing image: row 9: the file '/img/p0.jpg' does not exist",
        "img/w\\x.jpg",
        "img/a b%c.png",
        *["img/p0.jpg"] * 2,
    ]


def test_images_that_are_not_files(folder: Path) -> None:
    reason = "image is a web address, not a file"
    assert paths_of(
        folder,
        "https://a.b/c.jpg",
        "S3://bucket/c.jpg",
        "data:image/png;base64,AAAA",
        "file://server/share/c.jpg",
        "file://[/c.jpg",
        "None",
        "",
    ) == [
        f"{reason}: row 2: 'https://a.b/c.jpg'; download it first",
        f"{reason}: row 3: 'S3://bucket/c.jpg'; download it first",
        f"{reason}: row 4: 'data:image/png;base64,AAAA'; download it first",
        f"{reason}: row 5: 'file://server/share/c.jpg' is on the machine 'server'",
        f"{reason}: row 6: 'file://[/c.jpg' does not parse",
        "missing image: row 7 names no picture but 'None'",
        "missing image: row 8 names no picture",
    ]
