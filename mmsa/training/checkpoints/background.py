"""Checkpoints that a thread writes while training continues: `train.checkpoint_in_background`.

Training waits for a snapshot alone, a copy of everything in host memory; from a GPU it goes to
pinned memory, which is kept for the next one. The thread belongs to the main rank and makes no
collective. It writes the same bytes as a save that training waits for (checkpoint.py), under the
same rules: whole or absent. All ranks learn at the next save, or at the end, how it went.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from mmsa.engines.weight_average import WeightAverage
from mmsa.engines.zero_partitions import gather_weights
from mmsa.errors import AgreedError
from mmsa.export import CHECKPOINT_EXPORT_NAME, WEIGHTS_NAME
from mmsa.foundation.atomic_write import flush, save_tensors
from mmsa.foundation.digests import FileDigest, digest_of_file
from mmsa.models.batchnorm import running_statistics
from mmsa.training.checkpoints.average_state import LIVE_NAME, gather_live, with_averages
from mmsa.training.checkpoints.checkpoint import checkpoint_path, content_of
from mmsa.training.checkpoints.collective_write import WriteError, together
from mmsa.training.checkpoints.disk_space import not_written
from mmsa.training.checkpoints.intact import statistics_name
from mmsa.training.checkpoints.optimizer_state import gather_optimizer_state
from mmsa.training.checkpoints.whole_directory import (
    SealedMeanwhile,
    complete_directory,
    note_save,
    start_directory,
    write_rest,
)


@dataclass(frozen=True)
class Snapshot:
    """Everything of one step, in CPU memory that training does not touch."""

    weights: dict[str, Tensor]  # of the export: with `train.ema` the averages
    live: dict[str, Tensor] | None  # with `train.ema` the weights behind them
    optimizer: dict[str, Tensor]
    statistics: list[dict[str, Tensor]]  # each rank's own


class HostCopies:
    """Copies in host memory, which is kept from one snapshot to the next: pinning takes time."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._kept: dict[str, Tensor] = {}

    def of(self, group: str) -> Callable[[str, Tensor], Tensor]:
        """What copies the tensors of a group by their names. Valid after `wait`."""
        return lambda name, value: self._copy(f"{group}/{name}", value.detach())

    def _copy(self, name: str, value: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (value.shape, value.dtype):
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=self._pinned)
            self._kept[name] = kept
        return kept.copy_(value, non_blocking=self._pinned)

    def wait(self) -> None:
        """Until the copies from the device are there."""
        if self._pinned:
            torch.cuda.current_stream().synchronize()


class BackgroundSaves:
    """The saves of one run, one at a time. All ranks call `begin` and `finish` together."""

    def __init__(
        self,
        run_dir: Path,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        average: WeightAverage | None,
    ) -> None:
        self._run_dir, self._accelerator = run_dir, accelerator
        self._model, self._optimizer, self._average = model, optimizer, average
        self._copies = HostCopies(accelerator.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._step: int | None = None  # of the save under way, on every rank
        self._written: Future[float] | None = None  # its seconds; on the main rank

    def begin(
        self,
        step: int,
        *,
        describe_export: Callable[[Path], None],
        statistics: Mapping[str, Tensor],
        state: Mapping[str, Any],
        run_config: str,
    ) -> None:
        """Take a snapshot and let the thread write it. An earlier save must be finished.

        `describe_export(directory)` writes all of an export but its weights, on the main rank:
        it reads the model and the tokenizer, which training uses. `statistics` are the export's
        BatchNorm statistics, in copies. Raises `UserError` on every rank if it cannot be begun.
        """
        assert self._step is None, f"the checkpoint of step {self._step} is still being written"
        started = time.perf_counter()
        final = checkpoint_path(self._run_dir, step)
        temporary = final.with_name(f".{final.name}.tmp")
        on_main = self._accelerator.is_main_process
        content = content_of(state, self._accelerator)

        def prepare() -> None:
            start_directory(temporary)
            describe_export(temporary / CHECKPOINT_EXPORT_NAME)

        try:
            together(self._accelerator, prepare if on_main else None)
        except WriteError as error:
            if on_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise self._not_written(step, error) from None
        snapshot = self._snapshot(statistics)
        self._step = step
        if on_main:
            write = partial(_write, temporary, final, snapshot, content, run_config)
            self._written = self._thread.submit(_timed, write, final, step, started)

    def _snapshot(self, statistics: Mapping[str, Tensor]) -> Snapshot:
        """On the main rank; the others give their parts of it, and get one that is empty."""
        engine = (self._model, self._optimizer, self._accelerator)
        own = {name: one.cpu() for name, one in running_statistics(self._model).items()}
        if self._average is not None:
            own = with_averages(own, self._average)
        # `cpu` does not copy what is there already.
        of_ranks = gather_object([{name: one.contiguous().clone() for name, one in own.items()}])
        live = None
        with nullcontext() if self._average is None else self._average.applied():
            weights = gather_weights(*engine, self._copies.of("export"))
            self._copies.wait()  # the averages are about to be exchanged
        if self._average is not None:
            live = gather_live(
                self._accelerator, self._model, self._optimizer, self._copies.of("live")
            )
        optimizer = gather_optimizer_state(*engine, self._copies.of("optimizer"))
        self._copies.wait()
        means = {name: one.detach().cpu().contiguous() for name, one in statistics.items()}
        return Snapshot({**(weights or {}), **means}, live, optimizer or {}, of_ranks)

    def finish(self) -> bool:
        """Wait for the save under way, if there is one: whether a checkpoint was completed.

        Raises `UserError` on every rank where it could not be written.
        """
        if self._step is None:
            return False
        step, self._step = self._step, None
        written, self._written = self._written, None
        try:
            together(self._accelerator, None if written is None else lambda: _result(written))
        except WriteError as error:
            raise self._not_written(step, error) from None
        return True

    def wait(self) -> None:
        """Let the thread complete what it is writing, and end it. Not a collective, for a rank that
        fails: the checkpoint is good."""
        self._thread.shutdown()

    def _not_written(self, step: int, error: WriteError) -> AgreedError:
        return AgreedError(not_written(f"the checkpoint of step {step}", self._run_dir, error))


def _result(written: Future[float]) -> None:
    written.result()


def _timed(write: Callable[[], None], final: Path, step: int, started: float) -> float:
    write()
    seconds = time.perf_counter() - started
    note_save(final, step, seconds)
    return seconds


def _write(
    temporary: Path,
    final: Path,
    snapshot: Snapshot,
    content: Mapping[str, Any],
    run_config: str,
) -> None:
    """In the thread: from the snapshot to a whole checkpoint, or to nothing."""
    try:
        digests: dict[str, FileDigest] = {}
        for rank, own in enumerate(snapshot.statistics):
            file = temporary / statistics_name(rank)
            save_tensors(own, file)
            flush(file)
            digests[file.name] = digest_of_file(file)
        save_tensors(snapshot.weights, temporary / CHECKPOINT_EXPORT_NAME / WEIGHTS_NAME)
        with ThreadPoolExecutor(2) as threads:
            export = SealedMeanwhile(threads, temporary)
            if snapshot.live is not None:
                save_tensors(snapshot.live, temporary / LIVE_NAME)
            write_rest(temporary, snapshot.optimizer, content, run_config)
            complete_directory(temporary, final, export, digests)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
