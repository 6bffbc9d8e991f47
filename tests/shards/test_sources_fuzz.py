"""Damaged label files and tables: nothing crashes, and nothing is lost uncounted.

A source either refuses the whole with a `UserError` or gives as many items as it announced; `read`
checks that and what every item must be like.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw import jpeg, write_pair
from reading import read
from test_mvsa_enriched import ROWS, pictures, xlsx
from test_table import write

from mmsa.errors import UserError
from shards.example import Reason, Reject, Rejected, read_file
from shards.label_rules import RULES
from shards.sources import get_source

FIELDS = ["positive", "neutral", "negative", "Positive", "", " ", "\u4e2d", ",", '"', "\x00", "1"]
PAIRS = st.tuples(st.sampled_from(FIELDS), st.sampled_from(FIELDS)).map(",".join)
GOOD = st.sampled_from(["positive,positive", "neutral,negative", "negative,positive"])
LINE = st.tuples(
    st.sampled_from(["1", "2", "3", "4", "", "ID", "a b", "../1", "9" * 70]),
    st.lists(PAIRS | GOOD, max_size=4) | st.lists(GOOD, min_size=3, max_size=3),
).map(lambda parts: "\t".join([parts[0], *parts[1]]))


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("layout")
    for number in (1, 2, 5):
        write_pair(raw, str(number))
    (raw / "data" / "2.txt").write_bytes(b"\xff")
    return raw


@pytest.mark.parametrize("name", ["mvsa-single", "mvsa-multiple"])
@given(
    lines=st.lists(LINE, max_size=12),
    ends=st.sampled_from(["\n", "\r\n"]),
    rule=st.sampled_from(RULES[:4]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_label_lines(layout: Path, name: str, lines: list[str], ends: str, rule: str) -> None:
    content = "".join(line + ends for line in lines)
    (layout / "labelResultAll.txt").write_bytes(content.encode())
    examples, rejected = read(name, layout, labels=rule)
    counted = [line for line in lines if line.strip()]
    if counted and counted[0].split("\t")[0].strip().lower() == "id":
        del counted[0]
    ids = {line.split("\t")[0].strip() for line in counted}
    unlabelled = {"1", "2", "5"} - ids
    assert len(examples) + len(rejected) == len(counted) + len(unlabelled)
    assert {example.source_id for example in examples} <= {"1"}  # alone whole


def damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with bytes changed, cut out, put in twice, or cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.choice([0, 9, 10, 13, 34, 44, 92, 128, 255])])
        elif kind == 1:
            del changed[place : place + rng.randint(1, 12)]
        elif kind == 2:
            changed[place:place] = changed[: rng.randint(1, 60)]
        elif rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def outcomes_of_damage(path: Path, reading: Callable[[], object], *, times: int) -> set[str]:
    clean = path.read_bytes()
    rng = random.Random(0)
    seen = set()
    for _ in range(times):
        path.write_bytes(damaged(clean, rng))
        try:
            reading()
            seen.add("read")
        except UserError as error:
            seen.add("refused")
            str(error).encode("utf-8", "backslashreplace")
    return seen


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_damaged_tables(tmp_path: Path, form: str) -> None:
    path = write(tmp_path, form)
    seen = outcomes_of_damage(path, lambda: read("table", path), times=300)
    assert seen == {"read", "refused"}


@pytest.mark.parametrize("form", ["parquet", "xlsx"])
def test_damaged_binary_tables(tmp_path: Path, form: str) -> None:
    if form == "xlsx":
        path = tmp_path / "t.xlsx"
        xlsx(path, [("text", "image", "label"), ("a", "1.jpg", "x"), ("b", "2.jpg", "y")])
    else:
        path = write(tmp_path, form)
    seen = outcomes_of_damage(path, lambda: read("table", path), times=150)
    assert "refused" in seen


def test_damaged_enriched_sheets(tmp_path: Path) -> None:
    pictures(tmp_path / "Images", {"1": "positive", "2": "negative"})
    path = tmp_path / "LabeledText.csv"
    lines = [",".join(str(cell) for cell in row) for row in ROWS]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    seen = outcomes_of_damage(path, lambda: read("mvsa-enriched", tmp_path), times=300)
    assert seen == {"read", "refused"}


def test_every_file_of_a_folder_is_counted(tmp_path: Path) -> None:
    rng = random.Random(0)
    stems = set()
    for _ in range(200):
        stem = "".join(rng.choice("ab. _-%\n\u00e9\u4e03") for _ in range(rng.randint(1, 4)))
        folder = tmp_path / "raw" / rng.choice(["x", "y", "y/z"])
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, content in ((".jpg", jpeg(1)), (".txt", b"a text")):
            if rng.random() < 0.8 and not stem.startswith("."):
                (folder / (stem + suffix)).write_bytes(content)
                stems.add(folder / stem)
    examples, rejected = read("folder", tmp_path / "raw")
    assert len(examples) + len(rejected) == len(stems)
    assert len(examples) > 50


def test_file_names_that_cannot_be(tmp_path: Path) -> None:
    names = ["a\\u0000b.jpg", "\\n", "x" * 5000, "..", ".", "/", "http://t.co/a.jpg", "\\udc80"]
    rows = [f'{{"text": "a", "label": "b", "image": "{name}"}}' for name in names]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(rows))
    items = list(get_source("table").open_raw(path).items)
    assert len(items) == len(names)
    for item in items:
        if isinstance(item, Rejected):
            continue
        with pytest.raises(Reject):
            read_file(item.image_path, missing=Reason.NO_IMAGE, unreadable=Reason.UNREADABLE_IMAGE)
