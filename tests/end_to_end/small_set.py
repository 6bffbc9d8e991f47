"""A set of several uneven shards, and what a rank reads from it at a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from harness import TIMEOUT_S, TINY, start_launch
from packed import open_split, sample, seal, write_split
from processes import tree

from mmsa.data.manifest import load_manifest
from mmsa.data.order import Order
from mmsa.data.plan import batch_plan, deal

SIZES = (20, 4, 30, 10)  # 64 training samples: 4 steps per epoch at a global batch of 16
WORLD = 2
ENDS_WITHIN_S = 10.0  # promised in docs/data.md after one rank has ended

# Only images: nothing is read before the first step, so damage is found in the loop.
IMAGES_ONLY = [
    *[*TINY, "model.fusion.name=image_only", "train.epochs=50", "data.num_workers=1"],
    *["train.checkpoint_every_steps=2", "train.validate_every_steps=100"],
]


def small_set(
    directory: Path, *, undecodable: Sequence[int] = (), sizes: Sequence[int] = SIZES
) -> Path:
    """Pack it, in shards of `sizes` training samples.

    The images of the samples `undecodable` are truncated, with matching checksums.
    """
    directory.mkdir()
    numbers = iter(range(sum(sizes)))
    parts = [[sample(next(numbers)) for _ in range(size)] for size in sizes]
    for part in parts:
        for place, one in enumerate(part):
            if int(one.facts["source_id"]) in undecodable:
                part[place] = replace(one, image=one.image[:300])
    validation = [[sample(number, split="val") for number in range(6)]]
    splits = {"train": parts, "val": validation}
    seal(directory, {name: write_split(directory, name, part) for name, part in splits.items()})
    return directory


def place_at(directory: Path, *, step: int, rank: int) -> tuple[int, int]:
    """(shard, ordinal) of the first sample that `rank` of two reads at `step`, from 0, in epoch 0.

    Under the settings IMAGES_ONLY. No earlier step reads it, nor does the other rank.
    """
    reader = open_split(directory, load_manifest(directory))
    order = Order(reader.sizes, identity=reader.identity, seed=0, epoch=0, window_shards=2)
    plan = batch_plan(len(reader), global_batch_size=16, micro_batch_size=4, world_size=WORLD)
    _, start, stop = plan.locate(step)
    shards, rows = order.slice(start, stop)
    first = int(deal(None, 16, plan, rank)[0][0])
    return int(shards[first]), int(rows[first])


def watched(*settings: str, processes: int = WORLD) -> tuple[int, str, list[psutil.Process]]:
    """Run a training launch to its end: (exit code, standard error, processes left behind)."""
    launch = start_launch("train.py", *settings, processes=processes)
    seen: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while launch.poll() is None:
        assert time.monotonic() < deadline
        seen |= {process.pid: process for process in tree(launch.pid)}
        time.sleep(0.05)
    left = psutil.wait_procs(list(seen.values()), timeout=ENDS_WITHIN_S)[1]
    return launch.returncode, launch.communicate()[1], left


def loader_workers(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The processes whose parent is a fork server, without the server itself."""
    servers = {one.pid for one in processes if _is_server_or_worker(one)}
    return [one for one in processes if one.pid in servers and one.ppid() in servers]


def _is_server_or_worker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.forkserver" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def wait_for_checkpoint(run_dir: Path, step: int, launch: Any) -> None:
    """Wait for a whole checkpoint of `step` or later; the launch keeps running."""
    deadline = time.monotonic() + TIMEOUT_S
    while not any(
        int(path.parent.name[5:]) >= step for path in run_dir.glob("checkpoints/step-*/COMPLETE")
    ):
        assert launch.poll() is None, launch.communicate()
        assert time.monotonic() < deadline, f"no checkpoint of step {step} appeared"
        time.sleep(0.02)
