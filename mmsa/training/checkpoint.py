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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mmsa.errors import UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME, COMPLETE_NAME, STATE_NAME, is_whole
from mmsa.training.batchnorm import running_statistics

OPTIMIZER_NAME = "optimizer.pt"

# A full disk is an OSError in Python, a RuntimeError in torch, and safetensors has its own.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


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
    on_main = accelerator.is_main_process

    def make_empty() -> None:
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir(parents=True)

    def write() -> None:
        own = {name: buffer.cpu() for name, buffer in running_statistics(model).items()}
        own_file = aside / _statistics_name(accelerator.process_index)
        save_file(own, str(own_file))
        if on_main:
            write_export(aside / CHECKPOINT_EXPORT_NAME)
            torch.save(optimizer.state_dict(), aside / OPTIMIZER_NAME)
            (aside / STATE_NAME).write_text(json.dumps(dict(state), indent=1) + "\n")
        _flush(own_file)

    try:
        _together(accelerator, make_empty if on_main else None)
        _together(accelerator, write)
        _together(accelerator, (lambda: _complete(aside, final)) if on_main else None)
    except _WriteError as error:
        if on_main:
            shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {error}. "
            f"Make room in {run_dir} and repeat the command"
        ) from None
    return final


def _complete(aside: Path, final: Path) -> None:
    """Flush everything in `aside`, list it in COMPLETE, and give it its final name."""
    paths = sorted(aside.rglob("*"))
    sizes = {str(path.relative_to(aside)): path.stat().st_size for path in paths if path.is_file()}
    for path in paths:
        _flush(path)
    (aside / COMPLETE_NAME).write_text(json.dumps(sizes, indent=1) + "\n")
    _flush(aside / COMPLETE_NAME)
    _flush(aside)
    shutil.rmtree(final, ignore_errors=True)  # a torn one: a whole one is resumed from, not redone
    os.replace(aside, final)
    _flush(final.parent)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None where it has none."""
    candidates = sorted((run_dir / "checkpoints").glob("step-*"), reverse=True)
    return next((path for path in candidates if is_whole(path)), None)


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
    """Remove all but the newest `count` whole checkpoints, and what a killed save left behind.

    A damaged one does not count, so that it never displaces the one to resume from.
    """
    folder = run_dir / "checkpoints"
    newest_first = sorted(folder.glob("step-*"), reverse=True)
    kept = [path for path in newest_first if is_whole(path)][:count]
    for old in newest_first:
        if len(kept) == count and old.name < kept[-1].name:
            shutil.rmtree(old)
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn)


def replace_best(run_dir: Path, step: int, write_export: Callable[[Path], None]) -> Path:
    """Write an export of `step`, point `RUN/best` at it, and remove the one before.

    The link is replaced by a rename, so that `best` is a whole export at any moment. Main rank
    only. Raises `UserError` where it cannot be written.
    """
    folder = run_dir / "exports"
    aside = folder / f".step-{step:08d}.tmp"
    final = folder / f"step-{step:08d}"
    repeated = 1
    while final.exists():  # `best` may point at it: a resumed run has come to this step again
        repeated += 1
        final = folder / f"step-{step:08d}-{repeated}"
    try:
        if aside.exists():
            shutil.rmtree(aside)
        write_export(aside)
        for path in (*aside.rglob("*"), aside):
            _flush(path)
        os.replace(aside, final)
        _flush(folder)
        link = run_dir / ".best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(final.relative_to(run_dir), target_is_directory=True)
        os.replace(link, run_dir / "best")
        _flush(run_dir)
        for old in folder.iterdir():
            if old != final:
                shutil.rmtree(old)
    except _WRITE_ERRORS as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"the export of step {step} could not be written: {error}. Make room in {run_dir} "
            "and repeat the command"
        ) from None
    return final


def _statistics_name(rank: int) -> str:
    return f"statistics-{rank:05d}.safetensors"


class _WriteError(Exception):
    """This or another rank failed to write; the same on all ranks."""


def _together(accelerator: Accelerator, act: Callable[[], None] | None) -> None:
    """Run `act`, if this rank has one; raise on every rank where any rank failed."""
    problem = ""
    try:
        if act is not None:
            act()
    except _WRITE_ERRORS as error:
        problem = str(error) or type(error).__name__
    failed = torch.tensor(float(bool(problem)), device=accelerator.device)
    if float(accelerator.reduce(failed, reduction="sum")) > 0:
        raise _WriteError(problem or "another rank failed to write")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
