"""Checkpoints: whole or absent, and the same for every engine and world size.

    RUN/checkpoints/step-00000120/
        export/                  an export of this step, usable on its own
        optimizer.safetensors    the optimizer's state by parameter names
        statistics-00000.safetensors   each rank's own BatchNorm running statistics
        live.safetensors         with train.ema: the weights behind the average (average_state.py)
        state.json               the step, what does not follow from it, and what must match
        run.yaml                 the run's config.yaml
        COMPLETE                 each file with its size and digest; written last

A checkpoint is written to `.step-N.tmp`, every file is flushed to disk, and the directory is
renamed once all ranks report success. Disk and cores are kept busy: weights are flushed and hashed
while the optimizer state is gathered and written, that is hashed while it is flushed, and a thread
removes the old checkpoint. Saving changes nothing in the live model. Reading one executes nothing:
there is no pickle in it. See docs/checkpoints.md.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsa.checkpoint_folders import (
    checkpoint_directories,
    step_of,
    whole_checkpoints,
)
from mmsa.engines.weight_average import WeightAverage
from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError, UserError
from mmsa.export import CHECKPOINT_EXPORT_NAME
from mmsa.foundation.atomic_write import flush, save_tensors
from mmsa.foundation.digests import FileDigest, digest_of_file
from mmsa.foundation.parsing import parse_json
from mmsa.models.batchnorm import running_statistics
from mmsa.training.checkpoints.average_state import load_average, save_live, with_averages
from mmsa.training.checkpoints.collective_write import (
    WriteError,
    remove_by_thread,
    remove_leftovers,
    together,
)
from mmsa.training.checkpoints.disk_space import not_written
from mmsa.training.checkpoints.intact import (
    CHECKPOINT_FORMAT,
    OPTIMIZER_NAME,
    read_state,
    read_state_content,
    statistics_name,
)
from mmsa.training.checkpoints.optimizer_state import gather_optimizer_state, load_optimizer_state
from mmsa.training.checkpoints.whole_directory import (
    LAST_SAVE_NAME,
    SealedMeanwhile,
    complete_directory,
    note_save,
    start_directory,
    write_rest,
)

logger = logging.getLogger("mmsa")


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    average: WeightAverage | None = None,
    write_export: Callable[[Path, Mapping[str, Tensor]], None],
    state: Mapping[str, Any],
    run_config: str,
) -> Path:
    """Write the checkpoint of `step`; all ranks call it together. Returns its directory.

    `model` is the bare model; `write_export(directory, weights)` is called on the main rank, and
    leaves sealing the export to this function. With `average` the export gets the averages, and
    the weights themselves have a file of their own. `run_config` is the content of the run's
    `config.yaml` (main rank). Raises `UserError` on every rank if any rank failed to write; earlier
    checkpoints stay.
    """
    started = time.perf_counter()
    final = checkpoint_path(run_dir, step)
    temporary = final.with_name(f".{final.name}.tmp")
    on_main = accelerator.is_main_process
    content = content_of(state, accelerator)
    try:
        together(accelerator, (lambda: start_directory(temporary)) if on_main else None)
        with ThreadPoolExecutor(2) as threads:
            # One after the other: the main rank never holds weights and optimizer state at once.
            statistics = _save_model(
                temporary, accelerator, model, optimizer, average, write_export
            )
            export = SealedMeanwhile(threads, temporary) if on_main else None
            _save_optimizer(temporary, accelerator, model, optimizer, content, run_config)
            complete = None
            if export is not None:
                complete = partial(complete_directory, temporary, final, export, statistics)
            together(accelerator, complete)
    except WriteError as error:
        if on_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise AgreedError(not_written(f"the checkpoint of step {step}", run_dir, error)) from None
    if on_main:
        note_save(final, step, time.perf_counter() - started)
    return final


def content_of(state: Mapping[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    """The content of `state.json`."""
    loss_scale = None if accelerator.scaler is None else dict(accelerator.scaler.state_dict())
    return {**CHECKPOINT_FORMAT, **state, "loss_scale": loss_scale}


def _save_model(
    temporary: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    average: WeightAverage | None,
    write_export: Callable[[Path, Mapping[str, Tensor]], None],
) -> dict[str, FileDigest]:
    """Write each rank's statistics and the export; returns the digests of the former, as their
    ranks found them."""
    own_name = statistics_name(accelerator.process_index)
    digests: list[tuple[str, FileDigest]] = []

    def write() -> None:
        own = {
            name: buffer.cpu().contiguous() for name, buffer in running_statistics(model).items()
        }
        if average is not None:
            own = with_averages(own, average)
        save_tensors(own, temporary / own_name)
        flush(temporary / own_name)
        digests.append((own_name, digest_of_file(temporary / own_name)))
        if weights is not None:
            write_export(temporary / CHECKPOINT_EXPORT_NAME, weights)

    with nullcontext() if average is None else average.applied():
        weights = gather_weights(model, optimizer, accelerator)
        together(accelerator, write)
    if average is not None:
        weights = None  # frees it before the others are gathered
        save_live(temporary, accelerator, model, optimizer)
    return dict(gather_object(digests))


def _save_optimizer(
    temporary: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    content: Mapping[str, Any],
    run_config: str,
) -> None:
    slots = gather_optimizer_state(model, optimizer, accelerator)

    def write() -> None:
        if slots is not None:
            write_rest(temporary, slots, content, run_config)

    together(accelerator, write)


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, whose content is not read; None if it has none.

    What a run resumes from is chosen by `intact.choose_checkpoint`.
    """
    return next(iter(whole_checkpoints(run_dir)), None)


def restore(
    checkpoint: Path,
    *,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    average: WeightAverage | None = None,
) -> None:
    """Load optimizer state, loss scale, this rank's own BatchNorm statistics, and the `average` of
    the weights; no collective.

    The weights are loaded before the engine wraps the model, from the export or, with an average,
    by `load_live`. At another world size the ranks start from the averaged statistics, which these
    files hold.
    """
    state = read_state(checkpoint)
    load_optimizer_state(checkpoint / OPTIMIZER_NAME, model, optimizer)
    if accelerator.scaler is not None and state["loss_scale"] is not None:
        accelerator.scaler.load_state_dict(state["loss_scale"])
    values: dict[str, Tensor] | None = None
    if state["world_size"] == accelerator.num_processes:
        file = checkpoint / statistics_name(accelerator.process_index)
        try:
            values = load_file(str(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read ({error}); use another checkpoint") from None
        with torch.no_grad():
            for name, buffer in running_statistics(model).items():
                buffer.copy_(values[name])
    if average is not None:
        load_average(average, checkpoint, model, optimizer, values)


def keep_newest(run_dir: Path, count: int) -> None:
    """Remove all but the newest `count` whole checkpoints, and what a killed save left behind.

    An incomplete one does not count, so it never displaces the one to resume from. Newer ones of
    damaged content have been set aside by then (`intact.Choice.set_aside`).
    """
    folder = run_dir / "checkpoints"
    remove_leftovers(folder)
    kept = whole_checkpoints(run_dir)[:count]
    for old in checkpoint_directories(run_dir):
        if len(kept) == count and step_of(old) < step_of(kept[-1]):
            remove_by_thread(old)


def best_step_of(checkpoint: Path) -> int | None:
    """The best step that a checkpoint refers to; None if none, or if its state cannot be read."""
    state = read_state_content(checkpoint)
    step = None if isinstance(state, str) else state.get("best_step")
    return step if isinstance(step, int) else None


def last_save_s(run_dir: Path) -> float | None:
    """Seconds that the last save of this run took, over all ranks; None if unknown."""
    try:
        content = parse_json((run_dir / "checkpoints" / LAST_SAVE_NAME).read_text())
        return float(content["save_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
