"""Checkpoints: whole or absent.

    RUN/checkpoints/step-00000120/
        export/                  an export of this step, usable by itself
        optimizer.pt             the optimizer's state
        statistics-00000.safetensors   each rank's own BatchNorm running statistics
        state.json               the step, what is no function of it, and what must match
        COMPLETE                 each file with its size; written last

A checkpoint is written to `.step-N.tmp`, every file flushed to disk, and renamed when all ranks say
that they succeeded. Saving changes nothing in the live model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from mmsa.errors import UserError
from mmsa.training.batchnorm import running_statistics

COMPLETE_NAME = "COMPLETE"
EXPORT_NAME = "export"
STATE_NAME = "state.json"
OPTIMIZER_NAME = "optimizer.pt"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    write_export: Callable[[Path], None],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step`; all ranks call it together. Returns its directory.

    `model` is the bare model, `write_export(directory)` is called on the main rank. Raises
    `UserError` on every rank where any rank failed to write; what was there before stays.
    """
    final = checkpoint_path(run_dir, step)
    aside = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    problem = ""
    try:
        own = {name: buffer.cpu() for name, buffer in running_statistics(model).items()}
        save_file(own, str(aside / _statistics_name(accelerator.process_index)))
        if accelerator.is_main_process:
            write_export(aside / EXPORT_NAME)
            torch.save(optimizer.state_dict(), aside / OPTIMIZER_NAME)
            (aside / STATE_NAME).write_text(json.dumps(dict(state), indent=1) + "\n")
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        problem = str(error)
    _agree(accelerator, problem, f"the checkpoint of step {step} could not be written")
    if accelerator.is_main_process:
        sizes = {
            str(path.relative_to(aside)): path.stat().st_size
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        for name in sizes:
            _flush(aside / name)
        (aside / COMPLETE_NAME).write_text(json.dumps(sizes, indent=1) + "\n")
        _flush(aside / COMPLETE_NAME)
        _flush(aside)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _flush(final.parent)
    accelerator.wait_for_everyone()
    return final


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where it has none."""
    candidates = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    return next((path for path in candidates if is_whole(path)), None)


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that `COMPLETE` lists is there with its size."""
    try:
        sizes = json.loads((checkpoint / COMPLETE_NAME).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The content of `state.json`."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text())
    return state


def restore(
    checkpoint: Path, *, accelerator: Accelerator, model: nn.Module, optimizer: Any
) -> None:
    """Load optimizer state and this rank's own BatchNorm statistics; weights come by the export.

    At another world size the ranks start from the averaged statistics, which the export holds.
    """
    loaded = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(loaded)
    own = checkpoint / _statistics_name(accelerator.process_index)
    same_world = read_state(checkpoint)["world_size"] == accelerator.num_processes
    if same_world:
        live = running_statistics(model)
        values = load_file(str(own))
        with torch.no_grad():
            for name, buffer in live.items():
                buffer.copy_(values[name])


def keep_newest(run_dir: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints, and what a killed save left behind."""
    folder = run_dir / "checkpoints"
    for old in sorted(folder.glob("step-*"), reverse=True)[count:]:
        shutil.rmtree(old)
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn)


def replace_best(run_dir: Path, step: int, write_export: Callable[[Path], None]) -> Path:
    """Write an export of `step`, point `RUN/best` at it, and remove the one before.

    The link is replaced by a rename, so that `best` is a whole export at any moment. Main rank
    only. Raises `UserError` where it cannot be written.
    """
    folder = run_dir / "exports"
    final = folder / f"step-{step:08d}"
    aside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        write_export(aside)
        for path in aside.rglob("*"):
            _flush(path)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        link = run_dir / ".best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(final.relative_to(run_dir), target_is_directory=True)
        os.replace(link, run_dir / "best")
        _flush(run_dir)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the export of step {step} could not be written: {error}. Make room in {run_dir} "
            "and repeat the command"
        ) from None
    for old in folder.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


def _statistics_name(rank: int) -> str:
    return f"statistics-{rank:05d}.safetensors"


def _agree(accelerator: Accelerator, problem: str, what: str) -> None:
    """Raise on every rank where any rank has a `problem`."""
    failed = torch.tensor(float(bool(problem)), device=accelerator.device)
    if float(accelerator.reduce(failed, reduction="sum")) > 0:
        raise UserError(
            f"{what}: {problem or 'another rank failed to write'}. "
            "Make room in the run directory and repeat the command"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
