"""`RUN/best`: a whole export at any moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saving import content_of, export_of, files_of_at_most, names, raise_os_error, trained

from mmsa.errors import UserError
from mmsa.training.checkpoint import replace_best


def weights_of(seed: int) -> Callable[[Path], None]:
    return export_of(trained(seed)[0])


def test_best_points_at_the_newest_best(tmp_path: Path) -> None:
    first = replace_best(tmp_path, 4, weights_of(0))
    assert (tmp_path / "best").is_symlink()
    assert not os.path.isabs(os.readlink(tmp_path / "best"))
    assert content_of(tmp_path / "best") == content_of(first)
    replace_best(tmp_path, 6, weights_of(1))
    assert os.readlink(tmp_path / "best") == "exports/step-00000006"
    assert names(tmp_path / "exports") == ["step-00000006"]
    assert names(tmp_path) == ["best", "exports"]


def test_a_run_directory_can_be_moved(tmp_path: Path) -> None:
    replace_best(tmp_path / "a", 4, weights_of(0))
    os.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "best" / "model.safetensors").is_file()


def test_best_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every call that changes a directory, `best` is one whole export or the other."""
    expected = []
    for seed in (0, 1):
        weights_of(seed)(tmp_path / f"expected-{seed}")
        expected.append(content_of(tmp_path / f"expected-{seed}"))
    run_dir = tmp_path / "run"
    replace_best(run_dir, 4, weights_of(0))
    seen: list[int] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            seen.append(expected.index(content_of(run_dir / "best")))
            return result

        return call

    for name in ("replace", "unlink", "rmdir", "symlink", "rename", "mkdir"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for step in (6, 6):  # the second time as a resumed run that comes to the same step again
        seen.clear()
        replace_best(run_dir, step, weights_of(1))
        assert len(seen) >= 5
        assert seen == sorted(seen)
        replace_best(run_dir, step, weights_of(0))
    monkeypatch.undo()
    replace_best(run_dir, 6, weights_of(1))
    assert content_of(run_dir / "best") == expected[1]
    assert len(names(run_dir / "exports")) == 1


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_best_export_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, num_bytes: int
) -> None:
    replace_best(tmp_path, 4, weights_of(0))
    before = content_of(tmp_path / "best")
    with (
        pytest.raises(UserError, match="the export of step 6 could not be written"),
        files_of_at_most(num_bytes),
    ):
        replace_best(tmp_path, 6, weights_of(1))
    assert content_of(tmp_path / "best") == before
    assert names(tmp_path / "exports") == ["step-00000004"]
    with pytest.raises(UserError, match="No space left"):
        replace_best(tmp_path, 6, raise_os_error)
    assert content_of(tmp_path / "best") == before
