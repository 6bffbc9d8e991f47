"""The parts of a prediction: how rows are cut and dealt, kept, and written."""

from __future__ import annotations

from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa.data.text import word_tokenizer
from mmsa.errors import UserError
from mmsa.prediction.batches import PIECE_BATCHES, PieceName, works_of
from mmsa.prediction.inputs.raw_rows import RawRows
from mmsa.prediction.inputs.source import Needs, window_of
from mmsa.prediction.inputs.table import TableRows
from mmsa.prediction.loader import BatchStream
from mmsa.prediction.outputs import Columns, Writer, writer_for
from mmsa.prediction.pieces import Pieces, Results
from mmsa.preprocessing import Preprocessing
from mmsa.raw_files.rows import open_table

# Characters that separate, quote, end lines, or are not one byte; not what strips as blank.
TEXTS = st.text(st.sampled_from('a;,"|\t\n\r é😀\x0b\u2028\x85='), max_size=8).map("x{}x".format)


@given(
    lengths=st.lists(st.integers(0, 5), max_size=40),
    batch_size=st.integers(1, 6),
    bad=st.sets(st.integers(0, 45), max_size=5),
)
def test_each_usable_row_is_in_one_batch(
    lengths: list[int], batch_size: int, bad: set[int]
) -> None:
    usable = [place for place in range(len(lengths) + len(bad)) if place not in bad]
    usable = usable[: len(lengths)]
    hashes = [(place * 7919) % 101 for place in usable]
    window = window_of(0, 100, usable, lengths[: len(usable)], hashes, {})
    works = list(works_of(3, window, batch_size))
    assert sorted(place for work in works for place in work.places.tolist()) == usable
    assert [work.is_first for work in works] == [True] + [False] * (len(works) - 1)
    assert works[-1].is_last
    assert [work.piece for work in works] == sorted(work.piece for work in works)
    for number in {work.piece.number for work in works}:
        piece = [work for work in works if work.piece == PieceName(3, number)]
        assert len(piece) <= PIECE_BATCHES
        assert [work.is_last for work in piece] == [False] * (len(piece) - 1) + [True]
    length_of = dict(zip(usable, lengths, strict=False))
    in_order = [length_of[place] for work in works for place in work.places.tolist()]
    assert in_order == sorted(in_order)


def test_processes_and_their_loaders_divide_the_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their number, a piece has the same batches, and one process computes it."""
    monkeypatch.setattr(RawRows, "window_rows", 30)
    texts = [f"word{row % 7} " * (row % 5) for row in range(75)]  # those without a word are errors
    (tmp_path / "a.csv").write_text("text,n\n" + "".join(f"{text},1\n" for text in texts))
    preprocessing = Preprocessing(max_tokens=12)
    needs = Needs(("text",), (), ())
    source = TableRows(tmp_path / "a.csv", needs, preprocessing, dataset="tiny")
    tokenizer = word_tokenizer(texts, 20, max_tokens=12)
    found = []
    for world_size, num_workers in ((1, 1), (1, 3), (2, 1), (3, 2)):
        pieces: dict[PieceName, list[list[int]]] = {}
        errors: dict[int, str] = {}
        for rank in range(world_size):
            of_rank: dict[PieceName, list[list[int]]] = {}
            workers = [
                list(BatchStream(
                    source, preprocessing, tokenizer, 2, frozenset(), rank, world_size, worker,
                    num_workers,
                ))
                for worker in range(num_workers)
            ]  # fmt: skip
            for batch in chain.from_iterable(zip_longest(*workers)):  # round-robin, as they arrive
                if isinstance(batch, dict):
                    of_rank.setdefault(batch["piece"], []).append(batch["rows"])
                    errors |= batch["errors"]
            assert not of_rank.keys() & pieces.keys()
            assert world_size == 1 or len(of_rank) >= 2
            pieces |= of_rank
        rows = sorted(row for batches in pieces.values() for batch in batches for row in batch)
        assert rows == [row for row, text in enumerate(texts) if text]
        assert sorted(errors) == [row for row, text in enumerate(texts) if not text]
        found.append(pieces)
    assert all(one == found[0] for one in found)


def test_what_is_kept_is_what_was_found(tmp_path: Path) -> None:
    first, second = Pieces(tmp_path / "out.csv"), Pieces(tmp_path / "out.csv")
    first.begin({"model": "a"}, resume=False, overwrite=False)
    with pytest.raises(UserError, match=r"another process is writing .*out\.csv"):
        second.begin({"model": "a"}, resume=True, overwrite=False)
    logits = np.array([[0.1, -2.5], [3e-9, 1e9]], dtype=np.float32)
    first.write(PieceName(0, 1), Results([7, 2], [logits], {7: "bad: é😀"}, {2: {"key": "k"}}))
    first.write(PieceName(0, 0), Results(errors={3: "empty"}))
    first.release()
    assert second.done() == {PieceName(0, 0), PieceName(0, 1)}
    found = second.read(sorted(second.done()))
    assert found.rows == [7, 2]
    np.testing.assert_array_equal(found.all_logits, logits)
    assert found.errors == {7: "bad: é😀", 3: "empty"}
    assert found.cells == {2: {"key": "k"}}
    with pytest.raises(UserError, match="model changed"):
        second.begin({"model": "b"}, resume=True, overwrite=False)
    second.release()
    second.begin({"model": "b"}, resume=False, overwrite=True)
    assert second.done() == frozenset()
    (second.folder / "000000-000000.npz").write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read"):
        second.read([PieceName(0, 0)])
    second.remove()
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=4), ending=st.sampled_from(["csv", "jsonl"]))
def test_written_rows_are_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], ending: str
) -> None:
    out = tmp_path_factory.mktemp("out") / f"out.{ending}"
    columns = Columns(["text", "label"], ["no", "yes"])
    assert columns.names[:4] == ("text", "input_label", "label", "confidence")
    with writer_for(out, columns, {}) as writer:
        for text, label in rows:
            cells = {"text": text, "label": label}
            writer.write(columns.predicted(cells, np.array([0.25, 0.75])))
            writer.write(columns.failed(cells, text))
    if rows or ending == "csv":
        found: list[Any] = [row.cells for row in open_table(out).rows()]
        assert len(found) == 2 * len(rows)
        for (text, label), good, bad in zip(rows, found[::2], found[1::2], strict=True):
            assert (good["text"], good["input_label"], good["label"]) == (text, label, "yes")
            assert [float(good[name]) for name in columns.results[1:4]] == [0.75, 0.25, 0.75]
            assert (bad["text"], bad["error"], bad.get("label") or None) == (text, text, None)


def test_a_table_with_tabs_has_one_line_for_each_row(tmp_path: Path) -> None:
    columns = Columns(["text"], ["no", "yes"])
    with writer_for(tmp_path / "out.tsv", columns, {}) as writer:
        writer.write(columns.failed({"text": 'a\tb\r\nc "d"\ré'}, "why"))
    (row,) = open_table(tmp_path / "out.tsv").rows()
    assert (row.cells["text"], row.cells["error"]) == ('a b c "d" é', "why")


def test_a_file_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("old")
    columns = Columns([], ["no", "yes"])
    with pytest.raises(ZeroDivisionError):
        _begin_and_fail(writer_for(tmp_path / "out.csv", columns, {}), columns)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"
    with pytest.raises(UserError, match="cannot be written"):
        writer_for(tmp_path / "absent" / "out.csv", columns, {}).__enter__()


def _begin_and_fail(writer: Writer, columns: Columns) -> None:
    with writer:
        writer.write(columns.failed({}, "why"))
        _ = 1 / 0
