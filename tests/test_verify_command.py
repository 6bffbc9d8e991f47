"""`python -m mmsa verify`: a verdict on each part, without running anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from mmsa.__main__ import main
from mmsa.config import Config
from mmsa.training.checkpoints.best_export import write_best
from tests.damage_files import cut, flip_bit
from tests.training.saving import save, trained, write_weights

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    config = Config().to_yaml()
    for step in (2, 4):
        save(tmp_path, step, accelerator, run_config=config)
    weights = trained()[0].state_dict()
    write_best(tmp_path, 4, lambda directory: write_weights(directory, weights))
    (tmp_path / "config.yaml").write_text(config)
    return tmp_path


def test_an_intact_run(run_dir: Path, capsys: Captured) -> None:
    assert main(["verify", str(run_dir)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["exports/step-00000004", "intact"],
        ["checkpoints/step-00000004", "intact"],
        ["checkpoints/step-00000002", "intact"],
    ]
    for part in ("best", "checkpoints/step-00000004", "checkpoints/step-00000004/export"):
        assert main(["verify", str(run_dir / part)]) == 0
    shutil.copytree(run_dir / "best", run_dir / "copy")
    assert main(["verify", str(run_dir / "copy")]) == 0


def test_damage_is_named_and_has_its_exit_code(run_dir: Path, capsys: Captured) -> None:
    flip_bit(run_dir / "best" / "model.safetensors")
    flip_bit(run_dir / "checkpoints" / "step-00000004" / "optimizer.safetensors")
    cut(run_dir / "config.yaml", 40)
    assert main(["verify", str(run_dir)]) == 2
    export, newest, oldest, config, summary = capsys.readouterr().out.splitlines()
    assert "DAMAGED: model.safetensors has other bytes than were written" in export
    assert "DAMAGED: optimizer.safetensors has other bytes" in newest
    assert oldest.split() == ["checkpoints/step-00000002", "intact"]
    assert config.split(None, 1)[0] == "config.yaml"
    assert summary == "3 damaged; the run would resume from checkpoints/step-00000002"
    assert main(["verify", str(run_dir / "best")]) == 2
    capsys.readouterr()
    (run_dir / "status.json").write_text('{"state": "done"}')  # it does not resume any more
    assert main(["verify", str(run_dir)]) == 2
    assert capsys.readouterr().out.endswith(f"python evaluate.py {run_dir} --checkpoint 2\n")


def test_a_start_that_failed_has_nothing_to_verify(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "status.json").write_text('{"state": "failed"}')
    assert main(["verify", str(tmp_path)]) == 0
    assert "has no export and no checkpoint yet" in capsys.readouterr().out


def test_what_is_none_of_these(tmp_path: Path, capsys: Captured) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert "is not a run directory, an export or a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "shown"), [("verify", "RUN|EXPORT|CHECKPOINT"), ("soup", "--kind {greedy,uniform}")]
)
def test_help_imports_nothing_heavy(command: str, shown: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mmsa", command, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert shown in ended.stdout
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert not imported & {"torch", "transformers", "accelerate", "safetensors"}
