"""Checkpoints: whole or absent, and the same for every engine and world size.

    RUN/checkpoints/step-00000120/
        export/                  an export of this step, usable on its own
        optimizer.safetensors    the optimizer's state by parameter names
        statistics-00000.safetensors   each rank's own BatchNorm running statistics
        state.json               the step, what does not follow from it, and what must match
        COMPLETE                 each file with its size; written last

A checkpoint is written to `.step-N.tmp`, every file is flushed to disk, and the directory is
renamed once all ranks report success. The disk is kept busy: weights are flushed while the
optimizer state is gathered and written, and a thread removes the old checkpoint. Saving changes
nothing in the live model. Reading one executes nothing: there is no pickle in it. See
docs/checkpoints.md.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError, UserError
from mmsa.export import (
    CHECKPOINT_EXPORT_NAME,
    COMPLETE_NAME,
    STATE_NAME,
    WEIGHTS_NAME,
    whole_checkpoints,
)
from mmsa.foundation.atomic_write import flush, flush_tree, rename_directory, write_status
from mmsa.models.batchnorm import running_statistics
from mmsa.training.checkpoints.collective_write import (
    WriteError,
    remove_by_thread,
    remove_leftovers,
    together,
)
from mmsa.training.checkpoints.disk_space import not_written
from mmsa.training.checkpoints.optimizer_state import gather_optimizer_state, load_optimizer_state

logger = logging.getLogger("mmsa")

OPTIMIZER_NAME = "optimizer.safetensors"
LAST_SAVE_NAME = "last_save.json"
CHECKPOINT_FORMAT = {"format": "mmsa-checkpoint", "version": 1}


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    write_export: Callable[[Path, Mapping[str, Tensor]], None],
    state: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of `step`; all ranks call it together. Returns its directory.

    `model` is the bare model; `write_export(directory, weights)` is called on the main rank. Raises
    `UserError` on every rank if any rank failed to write; earlier checkpoints stay.
    """
    started = time.perf_counter()
    final = checkpoint_path(run_dir, step)
    temporary = final.with_name(f".{final.name}.tmp")
    on_main = accelerator.is_main_process
    content = {**CHECKPOINT_FORMAT, **state, "loss_scale": _loss_scale(accelerator)}
    try:
        together(accelerator, (lambda: _start_directory(temporary)) if on_main else None)
        with ThreadPoolExecutor(1) as disk:
            # One after the other: the main rank never holds weights and optimizer state at once.
            _save_model(temporary, accelerator, model, optimizer, write_export)
            flushed = [disk.submit(flush, _weights_file(temporary))] if on_main else []
            _save_optimizer(temporary, accelerator, model, optimizer, content)
            together(
                accelerator, (lambda: _complete(temporary, final, flushed)) if on_main else None
            )
    except WriteError as error:
        if on_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise AgreedError(not_written(f"the checkpoint of step {step}", run_dir, error)) from None
    if on_main:
        with suppress(OSError):
            save_s = round(time.perf_counter() - started, 3)
            write_status(final.with_name(LAST_SAVE_NAME), {"step": step, "save_s": save_s})
    return final


def _start_directory(temporary: Path) -> None:
    temporary.parent.mkdir(exist_ok=True)  # and not its parents: the run may have been moved
    remove_leftovers(temporary.parent)
    temporary.mkdir()


def _weights_file(checkpoint: Path) -> Path:
    return checkpoint / CHECKPOINT_EXPORT_NAME / WEIGHTS_NAME


def _save_model(
    temporary: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    write_export: Callable[[Path, Mapping[str, Tensor]], None],
) -> None:
    weights = gather_weights(model, optimizer, accelerator)

    def write() -> None:
        own = {name: buffer.cpu() for name, buffer in running_statistics(model).items()}
        own_file = temporary / _statistics_name(accelerator.process_index)
        save_file(own, str(own_file))
        flush(own_file)
        if weights is not None:
            write_export(temporary / CHECKPOINT_EXPORT_NAME, weights)

    together(accelerator, write)


def _save_optimizer(
    temporary: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    content: Mapping[str, Any],
) -> None:
    slots = gather_optimizer_state(model, optimizer, accelerator)

    def write() -> None:
        if slots is not None:
            save_file(slots, str(temporary / OPTIMIZER_NAME))
            (temporary / STATE_NAME).write_text(json.dumps(content, indent=1) + "\n")

    together(accelerator, write)


def _complete(temporary: Path, final: Path, flushed: list[Future[None]]) -> None:
    """Flush everything in `temporary`, list it in COMPLETE, and give it its final name.

    `flushed` are the weights; the system reports an error in writing them only once.
    """
    for future in flushed:
        future.result()
    paths = sorted(temporary.rglob("*"))
    sizes = {
        str(path.relative_to(temporary)): path.stat().st_size for path in paths if path.is_file()
    }
    flush_tree(temporary)
    # Last of all files: what it lists is on the disk already.
    (temporary / COMPLETE_NAME).write_text(json.dumps(sizes, indent=1) + "\n")
    flush(temporary / COMPLETE_NAME)
    flush(temporary)
    shutil.rmtree(
        final, ignore_errors=True
    )  # an incomplete one: from a whole one the run would resume
    rename_directory(temporary, final)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run; None if it has none."""
    return next(iter(whole_checkpoints(run_dir)), None)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The content of `state.json`; `UserError` where another version of the format is found."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_NAME).read_text())
    found = {key: state.get(key) for key in CHECKPOINT_FORMAT}
    if found != CHECKPOINT_FORMAT:
        raise UserError(
            f"{checkpoint} has format {found['format']} {found['version']}; this program reads "
            f"{CHECKPOINT_FORMAT['format']} {CHECKPOINT_FORMAT['version']}. Resume with the "
            f"version of mmsa that wrote it ({state.get('code_version', 'an early one')}), or "
            "choose another run.dir"
        )
    return state


def restore(
    checkpoint: Path, *, accelerator: Accelerator, model: nn.Module, optimizer: Any
) -> None:
    """Load optimizer state, loss scale and this rank's own BatchNorm statistics; no collective.

    The weights come from the export, which is loaded before the engine wraps the model. At another
    world size the ranks start from the averaged statistics, which the export holds.
    """
    state = read_state(checkpoint)
    load_optimizer_state(checkpoint / OPTIMIZER_NAME, model, optimizer)
    if accelerator.scaler is not None and state["loss_scale"] is not None:
        accelerator.scaler.load_state_dict(state["loss_scale"])
    if state["world_size"] == accelerator.num_processes:
        values = load_file(str(checkpoint / _statistics_name(accelerator.process_index)))
        with torch.no_grad():
            for name, buffer in running_statistics(model).items():
                buffer.copy_(values[name])


def keep_newest(run_dir: Path, count: int) -> None:
    """Remove all but the newest `count` whole checkpoints, and what a killed save left behind.

    An incomplete one does not count, so it never displaces the one to resume from.
    """
    folder = run_dir / "checkpoints"
    remove_leftovers(folder)
    kept = whole_checkpoints(run_dir)[:count]
    for old in folder.glob("step-*"):
        if len(kept) == count and old.name < kept[-1].name:
            remove_by_thread(old)


def last_save_s(run_dir: Path) -> float | None:
    """Seconds that the last save of this run took, over all ranks; None if unknown."""
    try:
        content = json.loads((run_dir / "checkpoints" / LAST_SAVE_NAME).read_text())
        return float(content["save_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _loss_scale(accelerator: Accelerator) -> dict[str, Any] | None:
    """The state of fp16's loss scale; None in another precision."""
    return None if accelerator.scaler is None else dict(accelerator.scaler.state_dict())


def _statistics_name(rank: int) -> str:
    return f"statistics-{rank:05d}.safetensors"
