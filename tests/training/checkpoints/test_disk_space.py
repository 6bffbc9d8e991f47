"""Room on the disk: what a run will need, and what is refused before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from full_disk import fill
from saving import names, trained, write_weights
from torch import nn

from mmsa.data.audit_files import AuditWriter
from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_status
from mmsa.training.checkpoints.checkpoint import save_checkpoint
from mmsa.training.checkpoints.disk_space import (
    DiskNeed,
    check_room,
    checkpoint_bytes,
    disk_need,
    export_bytes,
)
from mmsa.training.tracking import Tracker

MIB = 2**20


def test_sizes_follow_from_the_numbers() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.Linear(1000, 500, bias=False))
    model[1].weight.requires_grad_(False)
    small = 2 * MIB + 2 * 200
    assert export_bytes(model) == 1_500_000 * 4 + small
    assert checkpoint_bytes(model, 1) == 1_500_000 * 4 + 1_000_000 * 8 + small + 3 * 200
    # In half precision it is stored in float32 nevertheless.
    assert export_bytes(model.half()) == 1_500_000 * 4 + small
    with_norm = nn.BatchNorm1d(1000)
    of_a_rank = 1000 * 4 * 2 + 8 + 3 * 200  # mean, variance, batches
    assert checkpoint_bytes(with_norm, 8) - checkpoint_bytes(with_norm, 1) == 7 * of_a_rank


def test_the_estimate_holds_for_what_is_written(tmp_path: Path, accelerator: Accelerator) -> None:
    model = nn.Sequential(nn.Linear(700, 900), nn.BatchNorm1d(900), nn.Linear(900, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 700)).sum().backward()
    optimizer.step()
    path = save_checkpoint(
        tmp_path,
        1,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        write_export=write_weights,
        run_config="",
        state={},
    )
    written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    estimated = checkpoint_bytes(model, 1)
    assert written <= estimated <= 1.01 * written + 2 * MIB


@pytest.mark.parametrize(
    ("keep", "saves", "validations", "expected"),
    [
        (2, 100, 100, (3, 4)),  # two and the one being written; the best may be three older ones
        (2, 1, 1, (1, 1)),
        (5, 2, 0, (2, 0)),
        (1, 9, 1, (2, 1)),
    ],
)
def test_as_many_as_a_run_comes_to(
    tmp_path: Path, keep: int, saves: int, validations: int, expected: tuple[int, int]
) -> None:
    need = disk_need(
        tmp_path,
        nn.Linear(2, 2),
        world_size=1,
        keep_checkpoints=keep,
        saves_to_come=saves,
        validations_to_come=validations,
    )
    assert (need.num_checkpoints, need.num_exports) == expected
    assert need.present_bytes == 0


def test_what_is_there_counts(tmp_path: Path) -> None:
    model, _ = trained()
    for step in (1, 2):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{step}" / "optimizer.safetensors").write_bytes(bytes(9))
    need = disk_need(
        tmp_path, model, world_size=1, keep_checkpoints=2, saves_to_come=1, validations_to_come=1
    )
    assert (need.num_checkpoints, need.present_bytes) == (3, 18)
    assert need.missing_bytes == 3 * need.checkpoint_bytes + need.export_bytes - 18


def test_too_little_room_is_refused_with_the_numbers(small_disk: Callable[[str], Path]) -> None:
    need = DiskNeed(3 * MIB, 3, MIB, 2, MIB)
    assert need.missing_bytes == 10 * MIB
    disk = small_disk("10m")
    check_room(need, disk / "runs" / "first")
    (disk / "other").write_bytes(bytes(MIB))
    with pytest.raises(UserError) as refused:
        check_room(need, disk / "runs" / "first")
    nothing_yet = "3 checkpoint(s) of 3.15 MB and 2 export(s) of 1.05 MB at most"
    assert DiskNeed(3 * MIB, 3, MIB, 2, 0).in_words() == nothing_yet
    assert str(refused.value) == (
        f"the disk of {disk}/runs/first has 9.44 MB free and the run needs 10.5 MB more: 3 "
        "checkpoint(s) of 3.15 MB and 2 export(s) of 1.05 MB at most, 1.05 MB of it already "
        "present. Free some space, lower train.keep_checkpoints, or choose a run.dir on another "
        "disk"
    )


def test_small_writes_on_a_full_disk(small_disk: Callable[[str], Path]) -> None:
    """Measures and audit end the run in words; how it ended is told in the room that is there."""
    disk = small_disk("1m")
    tracker = Tracker(disk, start_step=0, num_steps=5, enabled=True, samples_per_step=8)
    audit = AuditWriter(disk, start_step=0, rank=0, world_size=1)
    audit.write(1, ["first"])
    write_status(disk / "status.json", {"state": "running", "reason": ""})
    filler = fill(disk)
    with pytest.raises(
        UserError, match=r"not be written.*No space left on device.*Free some space"
    ):
        measure_often(tracker)
    with pytest.raises(UserError, match=r"the audit .* cannot be written \(No space left"):
        write_often(audit)
    with pytest.raises(OSError, match="No space left"):
        write_status(disk / "another.json", {})
    write_status(disk / "status.json", {"state": "failed", "reason": "full"})
    told = (disk / "status.json").read_text()
    assert told == '{\n "state": "failed",\n "reason": "full"\n}\n'
    assert not list(disk.glob(".*.tmp"))
    filler.unlink()
    tracker.close()
    assert names(disk) == ["audit", "metrics.jsonl", "status.json", "tensorboard"]


def measure_often(tracker: Tracker) -> None:
    for step in range(1, 1000):  # the last block of a file has room for some lines
        tracker.train(step, loss=1.0, rates={}, grad_norm=1.0)


def write_often(audit: AuditWriter) -> None:
    for step in range(2, 1000):
        audit.write(step, ["a key"] * 10)
