"""What a user sees when a loader's processes are killed or stopped, for dataloader.py."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.dataloader_arms import batches_of, loader_workers
from benchmarks.handover import stages_of
from mmsa.data.stream import Failure
from mmsa.errors import EXIT_USER_ERROR, UserError

TIMEOUT_S = 20.0  # starting workers on a busy machine takes several seconds
ENDS_WITHIN_S = 60.0
FAULTS = {
    "main process killed": "main process: kill -9",
    "job killed": "all processes: kill -9",
    "worker killed": "worker: kill -9",
    "worker stopped": f"worker: SIGSTOP, timeout {TIMEOUT_S:g} s",
    "job paused": f"whole job: SIGSTOP for {TIMEOUT_S + 2:g} s, then SIGCONT",
    "small /dev/shm": "/dev/shm of 64 MB, batches of 19.6 MB",
}


def child(arm: str, shards: str, num_workers: int, batch_size: int) -> int:
    """A training process as far as its loader goes: batch after batch, until something happens."""
    torch.set_num_threads(1)
    stages = stages_of(shards, 1 << 20, batch_size=batch_size)
    begin = time.perf_counter()
    batches = batches_of(arm, stages, num_workers, TIMEOUT_S)
    workers = sorted(loader_workers())
    try:
        for number in itertools.count():
            item = next(batches)
            if isinstance(item, Failure):
                raise item.error
            if number == 0:
                facts = {"first_batch_s": time.perf_counter() - begin, "workers": workers}
                print(json.dumps(facts), flush=True)
            elif number == 100:
                return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def start_child(arm: str, shards: str, num_workers: int, *, batch_size: int = 32,
                small_shm: bool = False) -> subprocess.Popen[str]:  # fmt: skip
    arguments = [arm, shards, str(num_workers), str(batch_size)]
    command = [sys.executable, "-m", "benchmarks.dataloader_faults", *arguments]
    if small_shm:
        mount = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def first_batch_s(arm: str, shards: str, num_workers: int) -> float:
    """Seconds of wall time from opened shards to the first batch, in a fresh process."""
    process = start_child(arm, shards, num_workers)
    assert process.stdout is not None
    facts = json.loads(process.stdout.readline())
    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    names = shared_names(tree)
    end_all(tree)
    process.communicate()
    remove(names)
    return float(facts["first_batch_s"])


def end_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def shared_names(processes: list[psutil.Process]) -> set[str]:
    """Names in /dev/shm of what these processes have mapped, found by inode."""
    named = {str(entry.stat().st_ino): entry.name for entry in os.scandir("/dev/shm")}
    found = set()
    for process in processes:
        maps = ""
        with suppress(OSError):  # it has ended
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        for line in maps.splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/dev/shm/"):
                found.add(named.get(fields[4], ""))
    return found - {""}


def remove(names: set[str]) -> int:
    """Remove those of our names that are still in /dev/shm; returns how many there were."""
    left = names & set(os.listdir("/dev/shm"))
    for name in left:
        os.unlink(f"/dev/shm/{name}")
    return len(left)


def fault(name: str, arm: str, shards: str) -> dict[str, Any]:
    """What is seen of one fault: exit code, seconds to it, last line, what is left behind."""
    small = name == "small /dev/shm"
    process = start_child(arm, shards, 2, batch_size=128 if small else 32, small_shm=small)
    assert process.stdout is not None
    line = process.stdout.readline()
    tree = []
    with suppress(psutil.NoSuchProcess):
        tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    names = set() if name == "small /dev/shm" else shared_names(tree)
    begin = time.perf_counter()
    if line:
        cause(name, tree, json.loads(line)["workers"])
        begin = time.perf_counter()
    try:
        _, stderr = process.communicate(timeout=ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        stderr = "still running\n"
    seconds, code = time.perf_counter() - begin, process.poll()
    _, left = psutil.wait_procs(tree, timeout=10)
    end_all(left)
    num_names = remove(names)
    last = [text for text in stderr.splitlines() if text.strip()][-1:]
    return {
        "exit": code, "seconds": seconds, "message": "".join(last), "names": num_names,
        "processes": sum(one.pid != process.pid for one in left),
    }  # fmt: skip


def cause(name: str, tree: list[psutil.Process], workers: list[int]) -> None:
    """Do to the processes what the fault is called; `tree` begins with the main process."""
    if name == "main process killed":
        tree[0].kill()
    elif name == "job killed":
        end_all(tree)
    elif name == "worker killed":
        os.kill(workers[0], signal.SIGKILL)
    elif name == "worker stopped":
        os.kill(workers[0], signal.SIGSTOP)
    elif name == "job paused":
        for process in tree:
            process.suspend()
        time.sleep(TIMEOUT_S + 2)
        for process in tree:
            process.resume()


if __name__ == "__main__":
    sys.exit(child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
