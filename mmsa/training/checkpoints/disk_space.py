"""Disk space: how much a run will need for its checkpoints and exports, checked in advance."""

from __future__ import annotations

import errno
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mmsa.errors import UserError
from mmsa.foundation.sizes import size_in_words
from mmsa.models.batchnorm import running_statistics

_WEIGHT_BYTES = 4  # float32, whatever the precision of the computation
_OPTIMIZER_BYTES = 8  # two float32 moments for each trained number
_HEADER_BYTES = 200  # name, shape and place of a tensor in a file's header
_ADVICE = {
    errno.ENOSPC: "Free some space in {}",
    errno.EDQUOT: "Free some space in {}, or ask for a larger quota,",
    errno.EACCES: "Give yourself the right to write to {}",
    errno.EPERM: "Give yourself the right to write to {}",
    errno.EROFS: "Mount the disk of {} for writing",
    errno.EMFILE: "Allow more open files (ulimit -n 4096)",
    errno.ENFILE: "Close other programs, which have too many files open,",
}
# Of an export: tokenizer (BERT's is 1 MiB), configuration, labels. Of a checkpoint: its lists.
_SMALL_FILES_BYTES = 2 * 2**20


@dataclass(frozen=True)
class DiskNeed:
    """The most that checkpoints and exports of a run will take, in bytes."""

    checkpoint_bytes: int
    num_checkpoints: int  # those that are kept, and the one being written
    export_bytes: int
    num_exports: int  # the best, those that kept checkpoints refer to, and the one being written
    present_bytes: int  # of the above, already there

    @property
    def missing_bytes(self) -> int:
        """What is still to be written."""
        whole = self.num_checkpoints * self.checkpoint_bytes + self.num_exports * self.export_bytes
        return max(0, whole - self.present_bytes)

    def in_words(self) -> str:
        there = f", {size_in_words(self.present_bytes)} of it already present"
        return (
            f"{self.num_checkpoints} checkpoint(s) of {size_in_words(self.checkpoint_bytes)} and "
            f"{self.num_exports} export(s) of {size_in_words(self.export_bytes)} at most"
            f"{there if self.present_bytes else ''}"
        )


def export_bytes(model: nn.Module) -> int:
    """The size of an export of `model`, rather a little too large."""
    state = model.state_dict()
    numbers = sum(tensor.numel() * max(_WEIGHT_BYTES, tensor.itemsize) for tensor in state.values())
    return numbers + len(state) * _HEADER_BYTES + _SMALL_FILES_BYTES


def checkpoint_bytes(model: nn.Module, world_size: int, *, averaged: bool = False) -> int:
    """The size of a checkpoint of `model`: export, optimizer's state, each rank's statistics.

    With `averaged` (`train.ema`) also the weights behind the average, and averaged statistics.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = sum(value.numel() for value in trained) * _OPTIMIZER_BYTES
    optimizer += 3 * len(trained) * _HEADER_BYTES
    statistics = running_statistics(model).values()
    of_a_rank = sum(buffer.nbytes + _HEADER_BYTES for buffer in statistics)
    live = 0
    if averaged:
        live = sum(value.numel() * _WEIGHT_BYTES + _HEADER_BYTES for value in trained) + of_a_rank
        of_a_rank *= 2
    return export_bytes(model) + optimizer + live + world_size * of_a_rank


def disk_need(
    run_dir: Path,
    model: nn.Module,
    *,
    world_size: int,
    keep_checkpoints: int,
    averaged: bool = False,
    saves_to_come: int,
    validations_to_come: int,
) -> DiskNeed:
    """What a run in `run_dir` needs from here on; `model` is bare, not yet wrapped by an engine.

    Pure except for listing the directory: every rank finds the same.
    """
    there = len(list((run_dir / "checkpoints").glob("step-*")))
    best = len(list((run_dir / "exports").glob("step-*")))
    return DiskNeed(
        checkpoint_bytes=checkpoint_bytes(model, world_size, averaged=averaged),
        num_checkpoints=min(keep_checkpoints + 1, there + saves_to_come),
        export_bytes=export_bytes(model),
        num_exports=min(keep_checkpoints + 2, best + validations_to_come),
        present_bytes=_bytes_under(run_dir / "checkpoints") + _bytes_under(run_dir / "exports"),
    )


def check_room(need: DiskNeed, run_dir: Path) -> None:
    """Raise `UserError` if the file system of `run_dir` has less space than the run will write."""
    present = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(present).free
    if free < need.missing_bytes:
        raise UserError(
            f"the disk of {run_dir} has {size_in_words(free)} free and the run needs "
            f"{size_in_words(need.missing_bytes)} more: {need.in_words()}. Free some space, lower "
            f"train.keep_checkpoints, or choose a run.dir on another disk"
        )


def not_written(what: str, run_dir: Path, problem: Exception) -> str:
    """Why `what` could not be written to the run, and what to do about it, as one message."""
    if not run_dir.is_dir():
        return taken_away(run_dir)
    reason = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    number = getattr(problem, "errno", None)
    if number is None:  # of another library: "... (os error 28)"
        found = re.search(r"(?:Errno|os error) (\d+)", reason)
        number = int(found[1]) if found else errno.ENOSPC
    advice = _ADVICE.get(number, "Check that the disk of {} works")
    return f"{what} could not be written: {reason}. {advice.format(run_dir)} and repeat the command"


def taken_away(run_dir: Path) -> str:
    """The message where the run directory has gone while its run trained."""
    return (
        f"{run_dir} was removed or renamed while its run was training, so the run cannot be "
        f"continued under that name. Rename it back and repeat the command, which resumes from the "
        "newest checkpoint, or choose another run.dir"
    )


def _bytes_under(folder: Path) -> int:
    """Of the directories `step-N`: others, such as damaged ones, are not replaced by new ones."""
    paths = (path for step in folder.glob("step-*") for path in step.rglob("*"))
    return sum(path.lstat().st_size for path in paths if path.is_file())
