"""Checkpoints are whole or absent, whatever goes wrong while they are written or removed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate import Accelerator
from full_disk import files_of_at_most
from saving import content_of, names, raise_os_error, save, trained

from mmsa.checkpoint_folders import is_whole, whole_checkpoints
from mmsa.errors import UserError
from mmsa.training.checkpoints.checkpoint import (
    checkpoint_path,
    keep_newest,
    newest_checkpoint,
)


def delete(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("how", [delete, shorten, empty])
@pytest.mark.parametrize(
    "name",
    [
        "COMPLETE",
        "optimizer.safetensors",
        "state.json",
        "statistics-00000.safetensors",
        "export/model.safetensors",
        "export/tokenizer/words.txt",
    ],
)
def test_a_missing_or_short_file_makes_it_torn(
    tmp_path: Path, accelerator: Accelerator, how: Callable[[Path], None], name: str
) -> None:
    earlier, later = save(tmp_path, 1, accelerator), save(tmp_path, 2, accelerator)
    assert newest_checkpoint(tmp_path) == later
    how(later / name)
    # All but the line end of COMPLETE: still the whole list.
    if (how, name) == (shorten, "COMPLETE"):
        os.truncate(later / name, (later / name).stat().st_size - 1)
    assert not is_whole(later)
    assert newest_checkpoint(tmp_path) == earlier


@pytest.mark.parametrize("content", ["{}", "[]", "null", "7", '{"state.json": "x"}'])
def test_a_list_of_files_that_is_none(
    tmp_path: Path, accelerator: Accelerator, content: str
) -> None:
    path = save(tmp_path, 1, accelerator)
    (path / "COMPLETE").write_text(content)
    assert not is_whole(path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    keep_newest(tmp_path, 1)


def test_the_newest_stay(tmp_path: Path, accelerator: Accelerator) -> None:
    for step in (9, 10, 100, 11):
        save(tmp_path, step, accelerator)
    left = tmp_path / "checkpoints" / ".step-00000012.tmp"
    left.mkdir()
    (left / "state.json").write_text("{}")
    keep_newest(tmp_path, 2)
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000011", "step-00000100"]
    keep_newest(tmp_path, 5)
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000011", "step-00000100"]
    keep_newest(tmp_path, 1)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 100)


def test_a_torn_checkpoint_never_displaces_a_whole_one(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, accelerator)
    (checkpoint_path(tmp_path, 4) / "optimizer.safetensors").unlink()
    keep_newest(tmp_path, 1)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 3)
    save(tmp_path, 4, accelerator)  # the resumed run comes to its step again
    keep_newest(tmp_path, 1)
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000004"]
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 4)


def test_an_old_checkpoint_is_out_of_sight_while_it_is_removed(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a thread that was killed at it leaves nothing that the next save does not remove."""
    for step in (1, 2):
        save(tmp_path, step, accelerator)
    killed = checkpoint_path(tmp_path, 1).with_name(".step-00000001.old.tmp")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda self: None)
        keep_newest(tmp_path, 1)
    assert (killed / "COMPLETE").is_file()
    assert whole_checkpoints(tmp_path) == [checkpoint_path(tmp_path, 2)]
    save(tmp_path, 3, accelerator)
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000002", "step-00000003"]


# A disk that is full.


def test_weights_that_cannot_be_flushed_leave_what_was(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are flushed by a thread; the system may tell of a failed write there and only once."""
    earlier = save(tmp_path, 1, accelerator)
    told = []

    def failing(path: Path) -> None:
        if path.name == "model.safetensors" and not told:
            told.append(path)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mmsa.training.checkpoints.whole_directory.flush", failing)
    with pytest.raises(UserError, match="Input/output error"):
        save(tmp_path, 2, accelerator)
    assert told
    assert newest_checkpoint(tmp_path) == earlier
    assert names(tmp_path / "checkpoints") == ["last_save.json", "step-00000001"]


def test_an_export_that_cannot_be_written_leaves_what_was(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    earlier = save(tmp_path, 1, accelerator)
    before = content_of(earlier)
    with pytest.raises(UserError) as refused:
        save(tmp_path, 2, accelerator, write_export=raise_os_error)
    assert "the checkpoint of step 2 could not be written" in str(refused.value)
    assert "No space left on device" in str(refused.value)
    assert f"Free some space in {tmp_path} and repeat the command" in str(refused.value)
    assert newest_checkpoint(tmp_path) == earlier
    assert content_of(earlier) == before
    assert names(tmp_path / "checkpoints") == [
        "last_save.json",
        "step-00000001",
    ]  # room again for other files


def test_a_disk_that_fills_up_at_any_file(tmp_path: Path, accelerator: Accelerator) -> None:
    # At each file's last byte: COMPLETE, statistics, weights, state, digests, the optimizer's; each
    # library reports a failing write in its own way.
    earlier = save(tmp_path, 1, accelerator)
    model, optimizer = trained()
    before = content_of(earlier)
    sizes = sorted({len(content) for content in before.values()})
    assert len(sizes) == 8
    for size in sizes:
        refused = pytest.raises(UserError, match="step 2 could not be written")
        with refused, files_of_at_most(size - 1):
            save(tmp_path, 2, accelerator, model=model, optimizer=optimizer)
        assert content_of(earlier) == before
        assert newest_checkpoint(tmp_path) == earlier
    assert is_whole(save(tmp_path, 2, accelerator, model=model, optimizer=optimizer))


def test_a_place_that_cannot_be_written_to(tmp_path: Path, accelerator: Accelerator) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder is expected")
    with pytest.raises(UserError, match="step 2 could not be written"):
        save(tmp_path, 2, accelerator)
