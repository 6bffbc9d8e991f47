"""From labels to classes: similar spellings, numbers, missing values, classes without samples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import jpeg
from reading import opened, outcomes, read

from mmsa.errors import UserError
from mmsa.raw_files.missing_values import is_missing
from mmsa.raw_files.numbers import number_in, plain_number, position_in
from shards.class_names import class_names


def table(folder: Path, labels: list[Any], form: str = "csv") -> Path:
    """A table with a row for each label; all images exist."""
    (folder / "1.jpg").write_bytes(jpeg(1))
    path = folder / f"t.{form}"
    if form == "csv":
        lines = ["text,image,label", *(f"t,1.jpg,{label}" for label in labels)]
        path.write_text("\n".join(lines) + "\n")
    elif form == "jsonl":
        rows = [{"text": "t", "image": "1.jpg", "label": label} for label in labels]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")

        number = len(labels)
        columns = {"text": ["t"] * number, "image": ["1.jpg"] * number, "label": labels}
        parquet.write_table(pyarrow.table(columns), path)
    return path


def test_similar_labels_are_refused_until_the_user_says(tmp_path: Path) -> None:
    path = table(tmp_path, ["joy", "joy", "JOY", "Joy ", "sad", "1", "1.0", "1.0"])
    with pytest.raises(
        UserError,
        match=r"'1.0' \(2\), '1' \(1\); 'joy' \(2\), 'JOY' \(1\), 'Joy' \(1\)\. --similar-classes "
        "merge makes one class of them, keep keeps each",
    ):
        opened("table", path)
    assert outcomes("table", path, similar_classes="merge") == {"joy": 4, "sad": 1, "1": 3}
    merged = opened("table", path, similar_classes="merge").facts()["merged_labels"]
    assert merged == {"JOY": "joy", "Joy": "joy"}
    kept = {"joy": 2, "JOY": 1, "Joy": 1, "sad": 1, "1": 1, "1.0": 2}
    assert outcomes("table", path, similar_classes="keep") == kept
    with pytest.raises(UserError, match="--similar-classes both must be merge or keep"):
        opened("table", path, similar_classes="both")


@pytest.mark.parametrize(
    ("one", "other"),
    [("joy", "JOY"), ("very sad", "very  sad"), ("stra\u00dfe", "STRASSE"), ("1", "01")]
    + [("1", "+1"), ("0", "-0.0"), ("1000", "1e3"), ("caf\u00e9", "cafe\u0301"), ("1.10", "1.1")],
)
def test_what_is_similar(one: str, other: str) -> None:
    with pytest.raises(UserError, match="differ only in case, spaces or number format"):
        class_names(Counter([one, other, "z"]), None, None, where="x")


def test_names_for_numbers_that_do_not_begin_at_0(tmp_path: Path) -> None:
    """The first name would be given to the second number."""
    path = table(tmp_path, ["-1", "0", "1"] * 4)
    for names in (("neg", "neu", "pos"), ("neg", "neu")):
        with pytest.raises(UserError, match=r"--classes=-1,0,1\), or write the names"):
            opened("table", path, classes=names)
    assert outcomes("table", path, classes=("-1", "0", "1")) == {"-1": 4, "0": 4, "1": 4}
    one_wrong = table(tmp_path, [*["0", "1"] * 15, "7"])
    found = outcomes("table", one_wrong, classes=("neg", "pos"))
    assert found == {"neg": 15, "pos": 15, "unknown label": 1}


@settings(max_examples=200, deadline=None)
@given(labels=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6))
def test_every_label_gets_one_class(labels: list[str]) -> None:
    found = Counter(label.strip() for label in labels if label.strip())
    for how in ("merge", "keep"):
        names = class_names(found, None, how, where="x")  # type: ignore[arg-type]
        assert {names.class_of(label) for label in found} == set(names.names)
    merged = class_names(found, None, "merge", where="x").names
    class_names(Counter(merged), None, None, where="x")  # nothing similar is left


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 2], ("0", "1", "2")),
        ([0.0, 1.0, 2.0], ("0", "1", "2")),
        ([-1, 0, 1], ("-1", "0", "1")),
        ([0.5, 1.5], ("0.5", "1.5")),
        ([True, False], ("False", "True")),
    ],
)
def test_a_column_has_the_same_classes_in_every_format(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...]
) -> None:
    for form in ("csv", "jsonl", "parquet"):
        assert opened("table", table(tmp_path, labels, form)).classes == classes, form


def test_names_for_numbers(tmp_path: Path) -> None:
    """As `index` takes them: in order, from 0."""
    path = table(tmp_path, ["0", "2.0", "1", "1"])
    assert outcomes("table", path, classes=("a", "b", "c")) == {"a": 1, "b": 2, "c": 1}
    path = table(tmp_path, ["1", "2", "0"])  # these names are numbers, so 0 stands for none of them
    assert outcomes("table", path, classes=("1", "2")) == {"1": 1, "2": 1, "unknown label": 1}
    path = table(tmp_path, ["-1", "0", "1"])
    assert opened("table", path, classes=("-1", "0", "1")).classes == ("-1", "0", "1")


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null", "N/A", "NULL", "<NA>", "#N/A", ""])
def test_words_for_missing_values_are_no_labels(tmp_path: Path, word: str) -> None:
    path = table(tmp_path, ["joy", word, "sad"])
    assert is_missing(word)
    assert opened("table", path).classes == ("joy", "sad")
    assert read("table", path)[1] == [("2", "missing label")]
    if word:  # unless the user says that it is a class
        assert outcomes("table", path, classes=("joy", "sad", word)) == {
            "joy": 1,
            "sad": 1,
            word: 1,
        }


def test_stated_classes_that_no_row_has(tmp_path: Path) -> None:
    path = table(tmp_path, ["joy"] * 15 + ["anger"] * 12)
    message = (
        r"names 'happy', of which there is no sample. Labels found: 'joy' \(15\), 'anger' \(12\)"
    )
    with pytest.raises(UserError, match=message):
        opened("table", path, classes=("happy", "anger"))
    for label in ("joy", "anger"):
        (tmp_path / "raw" / label).mkdir(parents=True)
        (tmp_path / "raw" / label / "1.jpg").write_bytes(jpeg(1))
        (tmp_path / "raw" / label / "1.txt").write_text("text")
    with pytest.raises(UserError, match=r"names 'happy'.*'anger' \(1\), 'joy' \(1\)"):
        opened("folder", tmp_path / "raw", classes=("happy", "anger"))


def test_an_unknown_label_that_is_similar_to_a_class(tmp_path: Path) -> None:
    path = table(tmp_path, ["joy", "JOY", "sad"])
    rejected = list(opened("table", path, classes=("joy", "sad")).items)[1]
    assert "'JOY'; expected joy, sad; --similar-classes merge takes it for 'joy'" in str(rejected)
    merged = outcomes("table", path, classes=("joy", "sad"), similar_classes="merge")
    assert merged == {"joy": 2, "sad": 1}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("joy", "sad", ".ipynb_checkpoints", "joy/.thumbnails", "__MACOSX/joy"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(jpeg(1))
        (tmp_path / name / "1.txt").write_text("text")
    data = opened("folder", tmp_path)
    assert data.classes == ("joy", "sad")
    assert (data.total, data.facts()["other_files"]) == (2, 6)
    (tmp_path / "JOY").mkdir()
    (tmp_path / "JOY" / "2.txt").write_text("text")
    with pytest.raises(UserError, match="'JOY' .1., 'joy' .1."):
        opened("folder", tmp_path)


def test_numbers() -> None:
    plain = {"1.0": "1", "-2.50": "-2.5", "+1.0": "1", ".5": "0.5", "-0.0": "0", "1.": "1"}
    plain |= {same: same for same in ("1", "01", "1e3", "v1.0", ".", "-", "1.2.0", "", "1_0.0")}
    assert {text: plain_number(text) for text in plain} == plain
    assert number_in("nan") is None
    assert number_in("inf") is None
    assert [position_in(text, 3) for text in ("0", "2.0", "3", "-1", "a", "\u0663")] == [
        0,
        2,
        *[None] * 4,
    ]
