"""What is opened is what was written: damaged exports are refused, damaged checkpoints passed over.

All in this process, on copies of one run of six steps with checkpoints of steps 2, 4 and 6.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TINY, status

import mmsa
from evaluate import main as evaluate_main
from mmsa.errors import UserError
from mmsa.foundation.digests import warn_without_digests
from tests.damage_files import cut, flip_bit, same_size_garbage
from train import main as train_main

LAST = "step-00000006"
SETTINGS = [*TINY, "train.max_steps=6", "train.keep_checkpoints=3"]
SETTINGS += ["train.checkpoint_every_steps=2", "train.validate_every_steps=2"]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert train_main([*SETTINGS, f"data.shards={shards}", f"run.dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def run_dir(whole: Path, tmp_path: Path) -> Path:
    """A copy that looks as if it had been killed after its last checkpoint."""
    copy = tmp_path / "run"
    shutil.copytree(whole, copy, symlinks=True)
    (copy / "status.json").write_text(json.dumps({"state": "running", "step": 6}))
    (copy / "log.txt").unlink()
    return copy


def resume(run_dir: Path, shards: Path) -> int:
    return train_main([*SETTINGS, f"data.shards={shards}", f"run.dir={run_dir}"])


def assert_ends_as(run_dir: Path, whole: Path) -> None:
    """The resumed run has done the rest from an intact checkpoint: the same bytes as never
    damaged."""
    assert status(run_dir)["state"] == "done"
    names = [f"checkpoints/{LAST}/export/model.safetensors", "best/model.safetensors"]
    for name in [*names, f"checkpoints/{LAST}/optimizer.safetensors", "config.yaml"]:
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes(), name
    assert os.readlink(run_dir / "best") == os.readlink(whole / "best")
    assert list(run_dir.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.safetensors", flip_bit),
        ("state.json", same_size_garbage),
    ],
)
def test_a_run_resumes_from_the_newest_intact_checkpoint(
    whole: Path, run_dir: Path, shards: Path, name: str, damage: Callable[[Path], None]
) -> None:
    damage(run_dir / "checkpoints" / LAST / name)
    # In an old one, which is not resumed from, it must not disturb.
    same_size_garbage(run_dir / "checkpoints" / "step-00000002" / "state.json")
    assert resume(run_dir, shards) == 0
    assert_ends_as(run_dir, whole)
    log = (run_dir / "log.txt").read_text()
    assert f"{LAST} is damaged: {name} has other bytes than were written" in log
    assert "resuming from step-00000004, the newest intact one" in log
    assert (run_dir / "checkpoints" / f"damaged-{LAST}" / name).is_file()


def test_no_intact_checkpoint_is_an_error_that_names_each(
    run_dir: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4, 6):
        flip_bit(run_dir / "checkpoints" / f"step-{step:08d}" / "optimizer.safetensors")
    cut(run_dir / "config.yaml", 0)
    assert resume(run_dir, shards) == 2
    told = status(run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert told["reason"].startswith(f"no checkpoint of {run_dir} is intact. {LAST} is damaged: ")
    assert told["reason"].count("optimizer.safetensors has other bytes") == 3
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("found", [None, b"\0" * 4096, b"cut", b"{[ no yaml"])
def test_the_configuration_is_restored_from_the_checkpoint(
    whole: Path, run_dir: Path, shards: Path, found: bytes | None
) -> None:
    path = run_dir / "config.yaml"
    if found is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:700] if found == b"cut" else found)
    assert resume(run_dir, shards) == 0
    assert_ends_as(run_dir, whole)
    assert f"{path} " in (run_dir / "log.txt").read_text()
    assert (run_dir / "config.yaml.damaged").exists() == (found == b"{[ no yaml")


def test_a_damaged_best_export_is_found_out_on_resuming(run_dir: Path, shards: Path) -> None:
    """Else the run would end with a best export that nothing can open."""
    shutil.rmtree(run_dir / "checkpoints" / LAST)
    best = json.loads((run_dir / "checkpoints" / "step-00000004" / "state.json").read_text())
    export = run_dir / "exports" / f"step-{best['best_step']:08d}"
    flip_bit(export / "model.safetensors")
    assert resume(run_dir, shards) == 0
    assert f"{export} is damaged (model.safetensors has other" in (run_dir / "log.txt").read_text()
    assert os.readlink(run_dir / "best") == "exports/step-00000006"
    mmsa.load(run_dir)


def test_a_run_copied_without_links_resumes(whole: Path, run_dir: Path, shards: Path) -> None:
    copy = run_dir.with_name("copy")
    shutil.copytree(run_dir, copy)  # as cp -rL: `best` is a directory
    assert not (copy / "best").is_symlink()
    shutil.rmtree(copy / "checkpoints" / LAST)
    assert resume(copy, shards) == 0
    assert_ends_as(copy, whole)


def as_written_before(export: Path) -> None:
    """Without digests, as early versions wrote it."""
    (export / "digests.json").unlink()
    facts = json.loads((export / "export.json").read_text())
    del facts["digests"]
    (export / "export.json").write_text(json.dumps(facts))


def test_checkpoints_and_exports_of_before_are_used_with_a_warning(
    whole: Path, run_dir: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(run_dir / "checkpoints" / LAST)
    for step in (2, 4):
        checkpoint = run_dir / "checkpoints" / f"step-{step:08d}"
        as_written_before(checkpoint / "export")
        (checkpoint / "run.yaml").unlink()
        (checkpoint / "COMPLETE").unlink()
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
        (checkpoint / "COMPLETE").write_text(json.dumps(sizes))
    same_size_garbage(run_dir / "checkpoints" / "step-00000002" / "state.json")
    assert resume(run_dir, shards) == 0
    assert_ends_as(run_dir, whole)
    assert "step-00000004 was written by an early version" in (run_dir / "log.txt").read_text()
    as_written_before(run_dir / "best")
    warn_without_digests.cache_clear()
    logging.getLogger("mmsa").addHandler(caplog.handler)
    mmsa.load(run_dir)
    assert "was written by an early version of mmsa, without digests" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer/tokenizer.json", "config.yaml"])
def test_a_damaged_export_is_refused_by_name(
    run_dir: Path, shards: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    flip_bit(run_dir / "best" / name, 8 * 100)
    expected = f"is damaged: {name} has other bytes than were written"
    assert evaluate_main([str(run_dir), "--split", "val"]) == 2
    assert expected in capsys.readouterr().err
    with pytest.raises(UserError, match=expected):
        mmsa.load(run_dir)
    if name == "config.yaml":  # not read where model.text_encoder.config is given
        return
    settings = [f"data.shards={shards}", f"run.dir={run_dir.with_name('new')}"]
    settings += ["model.text_encoder.tokenizer=null"]
    settings += [f"model.text_encoder.weights={run_dir / 'best'}"]
    assert train_main([*SETTINGS, *settings]) == 2
    assert expected in status(run_dir.with_name("new"))["reason"]
