"""Loader processes: order, bounds, and every way to die, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from pipelines import Dying, Failing, Hanging, Noted, Numbers, Tensors, tensors
from processes import shared_memory_names, tree

from mmsa.data.loading.workers import AHEAD, LoaderWorkers
from mmsa.errors import ShardDamage, UserError

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PATIENCE_S = 60.0  # for what must come; nothing here is fast because of it


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_items_come_in_turn_and_end_together() -> None:
    workers = LoaderWorkers([Numbers(0, 2, 7), Numbers(1, 2, 7)])
    items = list(workers)
    assert [item["number"] for item in items] == [0, 1, 2, 3, 4, 5, 6]
    assert [item["row"].tolist() for item in items] == [[number] * 3 for number in range(7)]


def test_a_batch_arrives_bit_for_bit() -> None:
    (found,) = list(LoaderWorkers([Tensors()]))
    expected = tensors()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert found[name].shape == value.shape
            assert found[name].stride() == value.stride()
            assert found[name].numpy().tobytes() == value.contiguous().numpy().tobytes()
        else:
            assert found[name] == value
    found["images"] += 1  # its memory is the rank's own to write


def test_no_more_than_two_batches_are_made_ahead(tmp_path: Path) -> None:
    """The bound on a worker's memory: batches begun are batches taken plus AHEAD."""
    assert AHEAD == 2
    file = tmp_path / "begun"
    workers = LoaderWorkers([Noted(file)])
    for taken in range(1, 6):
        next(workers)
        # It may begin as many as it has credits for, and then waits.
        until(lambda taken=taken: file.stat().st_size == taken + AHEAD)  # type: ignore[misc]
    time.sleep(0.3)
    assert file.stat().st_size == 5 + AHEAD


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_nothing_stays_behind_a_batch(tmp_path: Path) -> None:
    """Neither open files nor memory, of which a worker holds as much after 150 MiB as after 8."""
    workers = LoaderWorkers([Noted(tmp_path / "begun")])
    (worker,) = [psutil.Process(pid) for pid in workers.pids]
    for _ in range(8):
        next(workers)
    before = len(os.listdir("/proc/self/fd"))
    own = worker.memory_full_info().uss
    for _ in range(150):
        next(workers)
    assert len(os.listdir("/proc/self/fd")) == before
    assert worker.memory_full_info().uss < own + (8 << 20)
    assert "memfd:mmsa-batch" not in Path("/proc/self/maps").read_text()
    links = [os.readlink(link) for link in Path(f"/proc/{worker.pid}/fd").iterdir()]
    assert sum("memfd:mmsa-batch" in link for link in links) == AHEAD


def test_a_bug_arrives_with_its_traceback() -> None:
    workers = LoaderWorkers([Failing()])
    assert next(workers) == {"number": 0}
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a mistake of ours"):
        next(workers)


def test_a_worker_that_kills_itself_is_reported() -> None:
    workers = LoaderWorkers([Numbers(0, 1, 9), Dying()])
    assert [next(workers)["number"] for _ in range(3)] == [0, 0, 1]
    with pytest.raises(UserError, match=r"loader worker 1 of 2 .* was killed by signal 9"):
        next(workers)


def test_a_worker_killed_from_outside_is_reported_after_what_it_made() -> None:
    workers = LoaderWorkers([Numbers(0, 1, 1000)])
    assert next(workers)["number"] == 0
    os.kill(workers.pids[0], signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid) for pid in workers.pids if psutil.pid_exists(pid)])
    taken = []
    with pytest.raises(UserError, match=r"process \d+\) was killed by signal 9") as death:
        taken.extend(workers)
    # What was made before the kill is whole, and nothing is skipped.
    assert [item["number"] for item in taken] == list(range(1, 1 + len(taken)))
    assert "use fewer data.num_workers" in str(death.value)


def test_a_worker_that_hangs_is_killed() -> None:
    workers = LoaderWorkers([Numbers(0, 1, 9), Hanging()], rank=3, timeout_s=1.5)
    assert [next(workers)["number"] for _ in range(3)] == [0, 0, 1]
    hanging = psutil.Process(workers.pids[1])
    with pytest.raises(ShardDamage) as silence:
        next(workers)
    assert str(silence.value).startswith(
        f"rank 3 got no batch from loader worker 1 of 2 (process {hanging.pid}) in 1.5 s; "
        "its last read was from train-00007.tar. Usually the file system"
    )
    assert "data.timeout_s" in str(silence.value)
    assert silence.value.shard == "train-00007.tar"
    assert psutil.wait_procs([hanging], timeout=PATIENCE_S)[1] == []


def test_a_worker_that_hangs_before_any_shard_is_reported_without_one() -> None:
    workers = LoaderWorkers([Numbers(0, 1, 9)], timeout_s=0.5)
    next(workers)
    os.kill(workers.pids[0], signal.SIGSTOP)
    with pytest.raises(UserError, match="it has not read a shard yet"):
        list(workers)


def test_workers_end_when_they_are_dropped() -> None:
    workers = LoaderWorkers([Numbers(0, 1, 1 << 40), Numbers(0, 1, 1 << 40)])
    next(workers)
    processes = [psutil.Process(pid) for pid in workers.pids]
    del workers
    assert psutil.wait_procs(processes, timeout=PATIENCE_S)[1] == []


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_names_in_shared_memory_are_found() -> None:
    """What the next test relies on: a lock as torch's DataLoader makes them has such a name."""
    script = (
        "import multiprocessing, sys\n"
        "lock = multiprocessing.get_context('forkserver').Lock()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    names = shared_memory_names([psutil.Process(holder.pid)])
    holder.communicate("")
    assert any(name.startswith("sem.mp-") for name in names)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
@pytest.mark.parametrize("alone", [True, False], ids=["the rank", "rank and workers"])
def test_kill_9_leaves_neither_processes_nor_names(alone: bool) -> None:
    """No process of the tree has mapped what has a name in /dev/shm: none can be left behind.

    Before that, once, the whole job is paused for longer than its rank waits for a batch, as
    SLURM's suspend does. That must not count as a worker that hangs.
    """
    script = ROOT / "tests" / "data" / "pipelines.py"
    rank = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout is not None
    assert rank.stdout.readline() == "ready\n"
    processes = tree(rank.pid)
    assert len(processes) >= 4  # rank, forkserver, two workers
    assert shared_memory_names(processes) == set()
    if alone:
        for process in processes:
            process.suspend()
        time.sleep(3.5)
        for process in processes:
            process.resume()
        time.sleep(1)
    assert rank.poll() is None
    for process in processes[:1] if alone else processes:  # the others see the end of their sockets
        process.kill()
    rank.communicate()
    assert psutil.wait_procs(processes, timeout=PATIENCE_S)[1] == []


def test_the_script_that_starts_workers_is_not_run_in_them(tmp_path: Path) -> None:
    """Not even one without a guard; train.py would be imported for seconds in each worker."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pipelines\n"
        "from mmsa.data.loading.workers import LoaderWorkers\n"
        "print('running', flush=True)\n"
        "print(next(LoaderWorkers([pipelines.Slow()])), flush=True)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "data")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr) == ("running\n{'number': 0}\n", "")
