"""A run directory that is renamed, removed or replaced while its run is training."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from accelerate import Accelerator
from saving import save

from mmsa.errors import UserError
from mmsa.training.trackers import TRACKERS, RunTracker, TrackedRun
from train import main as train_main

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "end_to_end"))
from harness import TINY, pack_synthetic


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_synthetic(tmp_path_factory.mktemp("data"), samples=60)


def rename(run_dir: Path) -> None:
    run_dir.rename(run_dir.with_name("elsewhere"))


def replace(run_dir: Path) -> None:
    rename(run_dir)
    run_dir.mkdir()
    (run_dir / "status.json").write_text('{"state": "done"}')  # of another run


@pytest.mark.parametrize("act", [rename, shutil.rmtree, replace])
def test_the_run_ends_with_that_as_its_reason_and_writes_nothing_there(
    act: Callable[[Path], None],
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_dir = tmp_path / "run"

    class ActsAfterStep1(RunTracker):
        def __init__(self, run: TrackedRun) -> None:
            pass

        def log(self, measures: Mapping[str, float], step: int) -> None:
            if step == 1:
                act(run_dir)

    monkeypatch.setitem(TRACKERS, "acts-after-step-1", ActsAfterStep1)
    settings = [f"data.shards={shards}", f"run.dir={run_dir}", "train.epochs=3"]
    settings += ["run.trackers=[acts-after-step-1]"]
    assert train_main([*TINY, *settings]) == 2
    said = capsys.readouterr().err
    assert f"error: {run_dir} was removed or renamed while its run was training" in said
    assert "Traceback" not in said
    assert "space" not in said
    if act is replace:
        assert [path.name for path in run_dir.iterdir()] == ["status.json"]
        assert json.loads((run_dir / "status.json").read_text()) == {"state": "done"}
    else:
        assert not run_dir.exists()


def test_a_checkpoint_does_not_make_the_directory_again(tmp_path: Path) -> None:
    run_dir, accelerator = tmp_path / "run", Accelerator(cpu=True)
    run_dir.mkdir()
    save(run_dir, 1, accelerator)
    rename(run_dir)
    with pytest.raises(UserError, match="was removed or renamed while its run was training"):
        save(run_dir, 2, accelerator)
    assert not run_dir.exists()
