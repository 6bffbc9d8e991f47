"""Directories that are whole or absent."""

from pathlib import Path

import pytest

from mmsa.errors import UserError
from shards.packing.output_directory import new_directory, refuse_existing


def test_nothing_stands_at_the_place_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with new_directory(target, overwrite=False) as aside:
        (aside.directory / "part").mkdir()
        (aside.directory / "part" / "file").write_text("x")
        assert not target.exists()
        assert aside.directory.parent == target.parent
    assert (target / "part" / "file").read_text() == "x"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def _write(target: Path, *, then: BaseException) -> None:
    with new_directory(target, overwrite=False) as aside:
        (aside.directory / "file").write_text("half")
        raise then


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, UserError])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _write(tmp_path / "out", then=error("stop"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_the_users_to_mend(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="No space left on device"),
        new_directory(tmp_path / "out", overwrite=False),
    ):
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="cannot be written"),
        new_directory(tmp_path / "file" / "out", overwrite=False),
    ):
        raise AssertionError("the block must not be entered")


def _write_while_another_does(target: Path) -> None:
    with new_directory(target, overwrite=False):
        target.mkdir()
        (target / "theirs").write_text("x")


def test_a_place_taken_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UserError, match="already exists"):
        _write_while_another_does(target)
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_moves_nothing_that_is_not_ours(tmp_path: Path) -> None:
    """A slip of the keyboard must not move somebody's papers, or the program's own package."""
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="contains neither shards"):
        refuse_existing(papers, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="contains neither shards"):
        refuse_existing(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", overwrite=True)
    (papers / "manifest.json").write_text("{}")
    refuse_existing(papers, overwrite=True)
