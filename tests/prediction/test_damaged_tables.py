"""Tables that are damaged in the middle: a line keeps its place, a file is refused whole."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from mmsa.__main__ import main
from tests.exports import write_tiny_export
from tests.workbooks import xlsx


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model that reads texts alone."""
    folder = tmp_path_factory.mktemp("texts")
    return write_tiny_export(
        folder / "export", model={"fusion": {"name": "text_only"}}, data={"num_workers": 0}
    )


def predict(export: Path, table: Path, out: Path) -> int:
    return main(["predict", str(export), str(table), "--out", str(out), "--quiet"])


def test_a_damaged_line_of_jsonl_keeps_its_place(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line that is cut, one of two objects, bytes of another encoding, a NUL."""
    lines = [
        b'{"text": "what a day"}',
        b'{"text": "what a',
        b'{"text": "a"} {"text": "b"}',
        b'{"text": "caf\xe9"}',
        b"\0\0",
        b'{"text": "my day"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert predict(export, tmp_path / "a.jsonl", tmp_path / "out.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in rows] == [
        None, "no JSON", "no JSON", "text is not utf-8; see --encoding", "no JSON", None
    ]  # fmt: skip
    assert [row.get("text") for row in rows][::5] == ["what a day", "my day"]
    assert "2 of 6 rows predicted" in capsys.readouterr().out


def damaged_workbooks(folder: Path) -> dict[str, Path]:
    """A workbook whose file ends early, one whose sheet does, and one with a flipped byte in it."""
    whole = folder / "whole.xlsx"
    xlsx(whole, [("text",), *((f"word{number} and more",) for number in range(50))])
    content = whole.read_bytes()
    (folder / "cut.xlsx").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[content.index(b"word25")] ^= 1  # zip has a checksum of each part
    (folder / "flipped.xlsx").write_bytes(flipped)
    with zipfile.ZipFile(whole) as parts, zipfile.ZipFile(folder / "sheet.xlsx", "w") as file:
        for name in parts.namelist():
            part = parts.read(name)
            file.writestr(name, part[: part.index(b"word25")] if b"word25" in part else part)
    return {name: folder / f"{name}.xlsx" for name in ("cut", "flipped", "sheet")}


@pytest.mark.parametrize("kind", ["cut", "flipped", "sheet"])
def test_a_damaged_workbook_is_refused_whole(
    kind: str, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = damaged_workbooks(tmp_path)[kind], tmp_path / "out.csv"
    assert predict(export, tmp_path / "whole.xlsx", out) == 0
    assert len(out.read_text().splitlines()) == 51
    capsys.readouterr()
    out.unlink()
    assert predict(export, table, out) == 2
    assert "cannot be read as XLSX" in capsys.readouterr().err
    assert not out.exists()
