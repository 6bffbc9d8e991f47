"""A new directory: whole or absent, with those above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsa.errors import UserError
from mmsa.foundation.new_directory import check_free, new_directory


def test_directories_above_it_are_made(tmp_path: Path) -> None:
    out = tmp_path / "out" / "b" / "onnx"
    check_free(out)
    assert not out.parent.exists()
    with new_directory(out) as folder:
        (folder / "a.txt").write_text("a")
    assert [path.name for path in out.parent.iterdir()] == ["onnx"]
    assert (out / "a.txt").read_text() == "a"


def test_absent_where_something_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "out" / "b") as folder:
            (folder / "a.txt").write_text("a")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    with pytest.raises(UserError, match="exists already; give a new directory with --output"):
        check_free(tmp_path / "file", "--output")
    with pytest.raises(UserError, match="file is not a directory; give another place than"):
        check_free(tmp_path / "file" / "below" / "it")
