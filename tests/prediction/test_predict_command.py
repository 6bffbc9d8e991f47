"""`python -m mmsa predict`: tables, folders and shards in, the same rows with results out."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

import mmsa
from evaluate import main as evaluate_main
from mmsa.__main__ import main
from mmsa.data.decoding.packed_form import image_as_packed
from mmsa.evaluation.inputs.ledger import read_ledger
from mmsa.labels import LABEL_NAMES
from mmsa.prediction import batches, pieces
from mmsa.prediction.inputs import raw_rows
from tests.exports import write_tiny_export
from tests.packed import sample, seal, text, write_split
from tests.workbooks import xlsx

NUM_ROWS = 45  # 6 batches of 8, the last with 5 rows
PROBABILITIES = [f"probability_{name}" for name in LABEL_NAMES]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, the packed split of them, an export whose run was trained on it, and its report."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "images").mkdir()
    (folder / "shards").mkdir()
    packed = []
    for number in range(NUM_ROWS):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / "images" / f"{number}.png"
        Image.fromarray(coarse).resize((90 + number, 80)).save(path)
        jpeg, _, _ = image_as_packed(path.read_bytes(), short_side_px=64, quality=90)
        packed.append(replace(sample(number, split="test"), image=jpeg))
    seal(folder / "shards", {"test": write_split(folder / "shards", "test", [packed])})
    write_tiny_export(
        folder / "export",
        data={"shards": str(folder / "shards"), "num_workers": 0},
        eval={"batch_size": 8},
    )
    arguments = ["--out", str(folder / "report"), "--no-page", "--no-floors"]
    assert evaluate_main([str(folder / "export"), *arguments]) == 0
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "tweet", "image", "label", "note"])
        for number in range(NUM_ROWS):
            key, image = f"tiny-test-{number}", f"images/{number}.png"
            rows.writerow([key, text(number), image, "given", f'a "{number}", b'])
    return folder


def predict(world: Path, source: Path, out: Path, *options: str) -> int:
    return main(["predict", str(world / "export"), str(source), "--out", str(out), *options])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluated(world: Path) -> dict[str, list[float]]:
    """The probabilities of the report by key, in float32 from its logits."""
    found = {}
    for row in rows_of(world / "report" / "predictions.jsonl"):
        logits = np.array(row["logits"], dtype=np.float32).astype(np.float64)
        odds = np.exp(logits - logits.max())
        found[row["key"]] = (odds / odds.sum()).astype(np.float32).tolist()
    return found


def probabilities(row: dict[str, Any]) -> list[float]:
    return np.array([float(row[name]) for name in PROBABILITIES], dtype=np.float32).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_table_and_its_shards_get_the_probabilities_of_the_evaluation(
    world: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit in float32, in the order of the rows."""
    expected, openings = evaluated(world), read_ledger(world / "export").num_openings
    assert predict(world, world / "shards", tmp_path / "a.jsonl", "--num-workers", workers) == 0
    assert read_ledger(world / "export").num_openings == openings + 1
    assert predict(world, world / "table.csv", tmp_path / "b.jsonl", "--num-workers", workers) == 0
    assert read_ledger(world / "export").num_openings == openings + 1
    assert "45 of 45 rows predicted" in capsys.readouterr().out
    for name in ("a.jsonl", "b.jsonl"):
        rows = rows_of(tmp_path / name)
        assert [row["key"] for row in rows] == [f"tiny-test-{n}" for n in range(NUM_ROWS)]
        for row in rows:
            assert probabilities(row) == expected[row["key"]], row
            assert row["confidence"] == max(row[name] for name in PROBABILITIES)
            assert row["label"] == LABEL_NAMES[int(np.argmax(probabilities(row)))]
    row = rows_of(tmp_path / "b.jsonl")[3]
    assert (row["note"], row["input_label"], row["tweet"]) == ('a "3", b', "given", text(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_every_format_says_the_same(world: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet"):
        assert predict(world, world / "table.csv", tmp_path / name) == 0
    expected = rows_of(tmp_path / "a.jsonl")
    with (tmp_path / "a.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    lines = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()]
    tabs = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.schema.field("confidence").type == "float"
    for rows in (found, tabs, table.to_pylist()):
        assert [probabilities(row) for row in rows] == [probabilities(row) for row in expected]
        for name in ("key", "tweet", "image", "input_label", "note", "label"):
            assert [row[name] for row in rows] == [row[name] for row in expected]
    # A prediction of a prediction: its columns stay, in their types.
    assert predict(world, _beside(world, tmp_path / "a.parquet"), tmp_path / "b.parquet") == 0
    again = parquet.read_table(tmp_path / "b.parquet")
    assert again.schema.field("input_confidence").type == "float"
    assert set(again["input_label"].to_pylist()) == {"given"}
    assert again["input_input_label"].to_pylist() == [row["label"] for row in expected]
    assert [probabilities(row) for row in again.to_pylist()] == [probabilities(r) for r in expected]


def _beside(world: Path, table: Path) -> Path:
    """A copy of a table where its images are."""
    return Path(shutil.copy(table, world / f"copy{table.suffix}"))


def test_a_bad_row_keeps_its_place(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (world / "table.csv").read_text().splitlines()
    (tmp_path / "images").symlink_to(world / "images")
    (tmp_path / "broken.png").write_bytes((world / "images" / "0.png").read_bytes()[:-40])
    lines[1] = "k1,some text,broken.png,,"
    lines[2] = "k2,some text,images/absent.png,,"
    lines[3] = "k3,,images/3.png,,"
    lines[4] = "too,few"
    lines[5] = "k5,text,https://example.org/a.png,,"
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    assert predict(world, tmp_path / "table.csv", tmp_path / "out.csv") == 0
    assert "40 of 45 rows predicted" in (said := capsys.readouterr().out)
    assert "5 with an error, the first: row 1: image: truncated image" in said
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == NUM_ROWS
    for row, words in zip(
        rows,
        ("truncated", "does not exist", "has no text", "3 fields short", "download it first"),
        strict=False,
    ):
        assert words in row["error"]
        assert not re.search(r"\brow \d", row["error"])  # of the file, where it stands anyway
        assert (row["label"], row["confidence"], row[PROBABILITIES[0]]) == ("", "", "")
    assert [row["key"] for row in rows[:5]] == ["k1", "k2", "k3", "", "k5"]
    expected = evaluated(world)
    for row in rows[5:]:
        assert row["error"] == ""
        # Other batches than those of the evaluation: the last digits may differ.
        np.testing.assert_allclose(probabilities(row), expected[row["key"]], rtol=1e-5)


def test_a_damaged_sample_of_shards_keeps_its_place(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = Path(shutil.copytree(world / "shards", tmp_path / "shards"))
    (tar,) = shards.glob("*.tar")
    content = bytearray(tar.read_bytes())
    content[content.index(b"\xff\xd8\xff", len(content) // 2) + 300] ^= 1
    tar.write_bytes(content)
    assert predict(world, shards, tmp_path / "out.jsonl") == 0
    assert "44 of 45 rows predicted" in capsys.readouterr().out
    rows, expected = rows_of(tmp_path / "out.jsonl"), evaluated(world)
    (bad,) = [place for place, row in enumerate(rows) if "error" in row]
    assert "do not match the index (crc32)" in rows[bad]["error"]
    for place, row in enumerate(rows):
        if place != bad:
            assert row["key"] == f"tiny-test-{place}"
            np.testing.assert_allclose(probabilities(row), expected[row["key"]], rtol=1e-5)


def test_a_model_of_one_modality_needs_no_other_column(world: Path, tmp_path: Path) -> None:
    """A text that it does not read decides about the order alone, never about an error."""
    export = write_tiny_export(
        tmp_path / "export", model={"fusion": {"name": "image_only"}}, data={"num_workers": 0}
    )
    shutil.copytree(world / "images", tmp_path / "images")
    (tmp_path / "a.csv").write_text("image\nimages/1.png\nimages/2.png\n")
    (tmp_path / "b.csv").write_bytes(b"text,image\n\xff,images/1.png\n,images/2.png\n")
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for out in outs:
        table = tmp_path / f"{out.stem}.csv"
        assert main(["predict", str(export), str(table), "--out", str(out)]) == 0
    first, second = map(rows_of, outs)
    assert [probabilities(row) for row in first] == [probabilities(row) for row in second]
    assert [row["image"] for row in second] == ["images/1.png", "images/2.png"]
    paths = [tmp_path / "images" / f"{number}.png" for number in (1, 2)]
    expected = mmsa.load(export, device="cpu").predict(images=paths).probabilities
    np.testing.assert_allclose([probabilities(row) for row in first], expected, rtol=1e-5)


def test_a_table_of_other_programs(world: Path, tmp_path: Path) -> None:
    """Semicolons, another encoding, other names of columns, paths as Windows writes them."""
    (tmp_path / "images").symlink_to(world / "images")
    lines = ["body;no;photo", "你好 word1;1;images\\1.PNG", '"word2; word3";2;images/2.png']
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="gb18030")
    options = ["--text-column", "body", "--image-column", "photo", "--id-column", "no"]
    out = tmp_path / "out.csv"
    assert predict(world, tmp_path / "a.csv", out, *options, "--encoding", "gb18030") == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["body"] for row in rows] == ["你好 word1", "word2; word3"]
    assert [row["error"] for row in rows] == ["", ""]


@pytest.mark.parametrize("ending", ["csv", "xlsx", "parquet"])
def test_columns_of_the_same_name_are_all_carried_over(
    tmp_path: Path, world: Path, ending: str
) -> None:
    export = write_tiny_export(
        tmp_path / "export", model={"fusion": {"name": "text_only"}}, data={"num_workers": 0}
    )
    heads = ["note", "text", "note", "note.1", "", ""]
    cells = ["first", "what a day", "second", "third", "fourth", "fifth"]
    table = tmp_path / f"a.{ending}"
    if ending == "csv":
        table.write_text("\n".join(",".join(row) for row in (heads, cells)))
    elif ending == "xlsx":
        xlsx(table, [tuple(heads), tuple(cells)])
    else:
        arrays = [pyarrow.array([cell]) for cell in cells]
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names=heads), table)
    for out in (tmp_path / "out.jsonl", tmp_path / "out.parquet"):
        assert main(["predict", str(export), str(table), "--out", str(out)]) == 0
    expected = dict(zip(["note", "text", "note.2", "note.1", "", ".1"], cells, strict=True))
    (row,) = rows_of(tmp_path / "out.jsonl")
    assert {name: row[name] for name in expected} == expected
    (row,) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert {name: row[name] for name in expected} == expected
    # Which of two is the text is not guessed.
    (tmp_path / "two.csv").write_text("text,text\na,b\n")
    words = ["predict", str(export), str(tmp_path / "two.csv"), "--out", str(tmp_path / "o.csv")]
    assert main(words) == 2


def test_a_file_name_that_is_no_unicode_is_escaped_in_its_error(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in (b"a", b"caf\xe9"):
        shutil.copy(world / "images" / "0.png", os.fsencode(raw) + b"/" + name + b".png")
        Path(os.fsdecode(os.fsencode(raw) + b"/" + name + b".txt")).write_bytes(b"caf\xe9")
    out = tmp_path / "out.parquet"
    assert predict(world, raw, out) == 0
    rows = parquet.read_table(out).to_pylist()
    assert [row["error"].partition(" is not")[0] for row in rows] == [
        "text: a.txt", r"text: caf\udce9.txt"
    ]  # fmt: skip
    assert capsys.readouterr().out.encode("utf-8")  # what a terminal can show


def test_a_folder_of_images_with_texts(world: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "inner").mkdir(parents=True)
    for number, name in enumerate(("b", "inner/a", "c")):
        shutil.copy(world / "images" / f"{number}.png", raw / f"{name}.png")
        (raw / f"{name}.txt").write_text(text(number))
    (raw / "c.txt").write_bytes(b"\xff\xff")
    (raw / "d.txt").write_text("no image")
    assert predict(world, raw, tmp_path / "out.jsonl") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == ["b", "c", "d", "inner/a"]
    assert [row["image"] for row in rows] == ["b.png", "c.png", None, "inner/a.png"]
    assert rows[0]["text"] == text(0)
    assert "is not utf-8" in rows[1]["error"]
    assert "has no image" in rows[2]["error"]
    expected = evaluated(world)
    for row, number in ((rows[0], 0), (rows[3], 1)):
        np.testing.assert_allclose(probabilities(row), expected[f"tiny-test-{number}"], rtol=1e-5)


def test_one_modality_alone_where_the_model_allows_it(world: Path, tmp_path: Path) -> None:
    export = write_tiny_export(
        tmp_path / "export", model={"stand_ins": ["text", "image"]}, data={"num_workers": 0}
    )
    (tmp_path / "images").symlink_to(world / "images")
    (tmp_path / "a.jsonl").write_text(
        '{"text": "what a day"}\n{"image": "images/1.png"}\n{"text": null}\n'
        '{"text": "my day", "image": "images/2.png", "deep": {"a": [1]}}\n[1]\n'
    )
    out = tmp_path / "out.jsonl"
    assert main(["predict", str(export), str(tmp_path / "a.jsonl"), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row.get("error") for row in rows] == [
        None, None, "the row has no text and no image", None, "no JSON object but list"
    ]  # fmt: skip
    assert rows[3]["deep"] == {"a": [1]}
    images = [None, world / "images" / "1.png", world / "images" / "2.png"]
    found = mmsa.load(export, device="cpu").predict(["what a day", None, "my day"], images)
    for row, expected in zip((rows[0], rows[1], rows[3]), found.probabilities, strict=True):
        np.testing.assert_allclose(probabilities(row), expected, rtol=1e-5)


class Killed(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "PIECE_BATCHES", 1)
    monkeypatch.setattr(raw_rows.RawRows, "window_rows", 20)


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(written=st.integers(1, 6))
def test_an_interrupted_prediction_resumes(
    world: Path,
    tmp_path_factory: pytest.TempPathFactory,
    small_pieces: None,
    capsys: pytest.CaptureFixture[str],
    written: int,
) -> None:
    """Whenever it is interrupted, the end is that of a prediction that was not."""
    folder = tmp_path_factory.mktemp("resume")
    whole, out = folder / "whole.csv", folder / "out.csv"
    assert predict(world, world / "table.csv", whole) == 0
    write, left = pieces.Pieces.write, iter(range(written))

    def killed(self: pieces.Pieces, *arguments: Any) -> None:
        if next(left, None) is None:
            self.release()
            raise Killed
        write(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.Pieces, "write", killed)
        with pytest.raises(Killed):
            predict(world, world / "table.csv", out)
    assert not out.exists()
    capsys.readouterr()
    assert predict(world, world / "table.csv", out) == 2
    assert "was interrupted; add --resume" in capsys.readouterr().err
    assert predict(world, world / "table.csv", out, "--resume", "--batch-size", "4") == 2
    assert "cannot be resumed: batch_size changed" in capsys.readouterr().err
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces.Pieces, "write", _noting(write, calls))
        assert predict(world, world / "table.csv", out, "--resume") == 0
    assert len(calls) == 7 - written  # 3 + 3 + 1 pieces in all
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "whole.csv"]
    assert predict(world, world / "table.csv", out, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out


def _noting(write: Any, calls: list[Any]) -> Any:
    def noted(self: pieces.Pieces, name: Any, results: Any) -> None:
        calls.append(name)
        write(self, name, results)

    return noted


def test_what_is_refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.csv").write_text("text\nhello\n")
    (tmp_path / "quote.csv").write_text('text,image\n"open,a.png\n')
    (tmp_path / "empty").mkdir()
    (tmp_path / "old.csv").write_text("kept")
    table, out = world / "table.csv", tmp_path / "out.csv"
    for source, target, options, words in (
        (tmp_path / "none.csv", out, (), "there is no"),
        (tmp_path / "text.csv", out, (), "the table has no column for the image"),
        (tmp_path / "quote.csv", out, (), "is not a CSV file"),
        (tmp_path / "empty", out, (), "has no images and no texts"),
        (table, tmp_path / "out.txt", (), "its ending says the format"),
        (table, tmp_path, (), "its ending says the format"),
        (table, tmp_path / "old.csv", (), "exists; add --overwrite"),
        (table, out, ("--text-column", "absent"), "has no column 'absent'"),
        (table, out, ("--batch-size", "0"), "--batch-size 0"),
        (table, out, ("--num-workers", "-1"), "--num-workers -1"),
        (table, out, ("--encoding", "utf-1"), "not a known encoding"),
        (table, out, ("--resume", "--overwrite"), "choose one of the two"),
        (world / "shards", out, ("--split", "val"), "have no split 'val'"),
    ):
        assert predict(world, source, target, *options) == 2, words
        said = capsys.readouterr().err
        assert words in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
    assert (tmp_path / "old.csv").read_text() == "kept"
    assert not out.exists()
    assert predict(world, table, tmp_path / "old.csv", "--overwrite") == 0
    assert "confidence" in (tmp_path / "old.csv").read_text()
