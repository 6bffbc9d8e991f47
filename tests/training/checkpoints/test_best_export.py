"""`RUN/best`: a whole export at any moment, and never ahead of the checkpoint to go on from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_of_at_most
from saving import content_of, names, raise_os_error, trained, write_weights

from mmsa.export import seal_export
from mmsa.training.checkpoints.best_export import keep_exports, settle_best, write_best
from mmsa.training.checkpoints.collective_write import WRITE_ERRORS


def weights_of(seed: int) -> Callable[[Path], None]:
    return lambda directory: write_weights(directory, trained(seed)[0].state_dict())


def test_best_points_at_the_newest_best(tmp_path: Path) -> None:
    first = write_best(tmp_path, 4, weights_of(0))
    assert (tmp_path / "best").is_symlink()
    assert not os.path.isabs(os.readlink(tmp_path / "best"))
    assert content_of(tmp_path / "best") == content_of(first)
    write_best(tmp_path, 6, weights_of(1))
    assert os.readlink(tmp_path / "best") == "exports/step-00000006"
    # The one before stays until a checkpoint knows of the new one.
    assert names(tmp_path / "exports") == ["step-00000004", "step-00000006"]
    keep_exports(tmp_path, {6})
    assert names(tmp_path / "exports") == ["step-00000006"]
    assert names(tmp_path) == ["best", "exports"]


def test_a_run_directory_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_best(tmp_path / "a", 4, weights_of(0))
    os.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "best" / "model.safetensors").is_file()


def test_a_run_that_goes_on_has_the_best_of_its_checkpoint(tmp_path: Path) -> None:
    write_best(tmp_path, 4, weights_of(0))
    before = content_of(tmp_path / "best")
    write_best(tmp_path, 6, weights_of(1))  # killed here: the checkpoint speaks of step 4
    (tmp_path / "exports" / ".step-00000008.tmp").mkdir()  # and inside the next one
    settle_best(tmp_path, 4, {4})
    assert os.readlink(tmp_path / "best") == "exports/step-00000004"
    assert names(tmp_path / "exports") == ["step-00000004"]
    assert content_of(tmp_path / "best") == before
    settle_best(tmp_path, 4, {4})
    assert content_of(tmp_path / "best") == before


def test_a_run_that_begins_anew_has_no_best(tmp_path: Path) -> None:
    settle_best(tmp_path, None, set())
    assert names(tmp_path) == []
    write_best(tmp_path, 4, weights_of(0))
    settle_best(tmp_path, None, set())
    assert not os.path.lexists(tmp_path / "best")
    assert names(tmp_path / "exports") == []


def test_best_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every call that changes a directory, `best` is one whole export or the other."""
    expected = []
    for seed in (0, 1):
        weights_of(seed)(tmp_path / f"expected-{seed}")
        seal_export(tmp_path / f"expected-{seed}")
        expected.append(content_of(tmp_path / f"expected-{seed}"))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    write_best(run_dir, 4, weights_of(0))
    seen: list[int] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            seen.append(expected.index(content_of(run_dir / "best")))
            return result

        return call

    for name in ("replace", "unlink", "rmdir", "symlink", "rename", "mkdir"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for _ in range(2):  # the second time as a run that comes to this step again
        seen.clear()
        write_best(run_dir, 6, weights_of(1))
        keep_exports(run_dir, {4, 6})
        assert len(seen) >= 5
        assert seen == sorted(seen)
        assert seen[-1] == 1
        seen.clear()
        settle_best(run_dir, 4, {4})
        assert len(seen) >= 3
        assert seen == sorted(seen, reverse=True)
        assert seen[-1] == 0


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_best_export_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, num_bytes: int
) -> None:
    write_best(tmp_path, 4, weights_of(0))
    before = content_of(tmp_path / "best")
    with pytest.raises(WRITE_ERRORS), files_of_at_most(num_bytes):
        write_best(tmp_path, 6, weights_of(1))
    assert content_of(tmp_path / "best") == before
    assert names(tmp_path / "exports") == ["step-00000004"]
    with pytest.raises(OSError, match="No space left"):
        write_best(tmp_path, 6, raise_os_error)
    assert content_of(tmp_path / "best") == before
