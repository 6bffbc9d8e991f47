"""In a measuring process: how long a checkpoint holds training up."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import real_run
from benchmarks.gpu.steps import finish, forget


def timed_saves(arms: list[dict[str, Any]], repeats: int) -> list[dict[str, Any]]:
    """Seconds that each save held training up, and those of a plain write of the same numbers."""
    rows = []
    for arm in arms:
        with tempfile.TemporaryDirectory() as folder:
            config, run = real_run.start_run([*arm["settings"], f"run.dir={folder}"])
            stalls, whole = [], []
            for _ in range(repeats):
                for _ in range(2):
                    real_run.one_step(config, run)
                finish()
                begin = time.perf_counter()
                run.save_checkpoint()
                stalls.append(time.perf_counter() - begin)
                run.files.finish_save()
                whole.append(time.perf_counter() - begin)
            plain = _plain_write(run, Path(folder) / "plain.pt")
            size = (Path(folder) / "plain.pt").stat().st_size
            rows.append(
                {
                    "name": arm["name"],
                    "stalls": stalls,
                    "whole": whole,
                    "plain_s": plain,
                    "mib": size / 2**20,
                }
            )
            del run
        forget()
    return rows


def _plain_write(run: Any, file: Path) -> float:
    """Seconds of `torch.save` of weights and optimizer state, and of its flush to the disk."""
    begin = time.perf_counter()
    content = {"model": run.bare_model.state_dict(), "optimizer": run.optimizer.state_dict()}
    torch.save(content, file)
    with open(file, "rb") as written:
        os.fsync(written.fileno())
    return time.perf_counter() - begin
