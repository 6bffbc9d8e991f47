"""Damage that one of two ranks finds during a real launch: named, exit 2, no process left."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from harness import TIMEOUT_S, start_launch, status
from processes import shared_memory_names, tree
from small_set import (
    ENDS_WITHIN_S,
    IMAGES_ONLY,
    WORLD,
    loader_workers,
    place_at,
    small_set,
    watched,
)

from mmsa.data.index_file import read_index
from mmsa.data.manifest import load_manifest

STEP, RANK = 2, 1  # where the damage is found first


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "other index", "picture"])
def test_damage_ends_a_launch_with_shard_and_key(tmp_path: Path, how: str) -> None:
    shards = small_set(tmp_path / "shards")
    shard, row = place_at(shards, step=STEP, rank=RANK)
    info = load_manifest(shards).splits["train"].shards[shard]
    key = f"tiny-train-{(0, 20, 24, 54)[shard] + row}"
    offset = int(read_index(shards, info)[row]["offset"])
    tar = shards / info.tar
    if how == "truncated":
        os.truncate(tar, offset + 600)
    elif how == "flipped":
        content = bytearray(tar.read_bytes())
        content[offset + 600] ^= 1
        tar.write_bytes(content)
    elif how == "missing":
        tar.unlink()
    elif how == "other index":
        shutil.copy(shards / "val-00000.idx", shards / info.index)
    else:
        number = int(key.rpartition("-")[2])
        # Another digest gives another order, so the sample is not found at STEP.
        shards = small_set(tmp_path / "undecodable", undecodable=[number])
    run_dir = tmp_path / "run"
    code, _, left = watched(*IMAGES_ONLY, f"data.shards={shards}", f"run.dir={run_dir}")
    assert left == []
    assert code == 1  # the launcher's exit code
    told = status(run_dir)
    assert (told["state"], told["exit_code"], told["shard"]) == ("failed", 2, info.tar)
    if how in ("flipped", "picture"):
        assert told["key"] == key
        assert key in told["reason"]
    if how == "flipped":
        assert (told["rank"], told["step"]) == (RANK, STEP)
    assert info.tar in told["reason"] or info.index in told["reason"]
    log = (run_dir / "log.txt").read_text()
    # Sizes are checked before the launch has a process group.
    at_start = how in ("truncated", "missing")
    assert (f"world_size {WORLD}, backend gloo" in log) != at_start
    assert f"error: {told['reason']}" in log


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_hangs_ends_a_launch(
    tmp_path: Path, how: signal.Signals
) -> None:
    shards, run_dir = small_set(tmp_path / "shards"), tmp_path / "run"
    settings = [*IMAGES_ONLY, "train.epochs=100000", "train.checkpoint_every_steps=1000"]
    settings += [f"data.shards={shards}", f"run.dir={run_dir}", "data.timeout_s=2"]
    launch = start_launch("train.py", *settings)
    deadline = time.monotonic() + TIMEOUT_S
    while not (run_dir / "metrics.jsonl").exists():
        assert launch.poll() is None, launch.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes = tree(launch.pid)
    workers = loader_workers(processes)
    assert len(workers) == 2 * WORLD  # training and validation
    assert shared_memory_names(processes) == set()
    os.kill(workers[0].pid, how)
    _, stderr = launch.communicate(timeout=TIMEOUT_S)
    assert psutil.wait_procs(processes, timeout=ENDS_WITHIN_S)[1] == []
    assert launch.returncode == 1
    told = status(run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 2)
    assert told["reason"] in stderr
    if how == signal.SIGKILL:
        assert f"(process {workers[0].pid}) was killed by signal 9" in told["reason"]
    else:
        assert f"rank {told['rank']} got no batch from loader worker 0 of 1" in told["reason"]
        assert f"(process {workers[0].pid}) in 2 s; " in told["reason"]
        assert f"; its last read was from {told['shard']}. Usually" in told["reason"]
        assert told["shard"] in {f"train-0000{number}.tar" for number in range(4)}
