"""All-reduce between all ranks, by gloo or NCCL: latency, and bandwidth from 1 kB to 256 MB.

The bus bandwidth of an all-reduce of S bytes in t seconds by n ranks is S / t * 2 (n - 1) / n, what
each link carries (nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from launch.doctor.node import Request, read_answers, this_node

_SIZES = {  # bytes
    "gloo": (1 << 10, 16 << 10, 256 << 10, 4 << 20, 16 << 20),
    "nccl": (1 << 10, 16 << 10, 256 << 10, 4 << 20, 64 << 20, 256 << 20),
}
_FOR_S, _AT_LEAST, _AT_MOST = 0.5, 3, 50  # repetitions of a size
_SHARE_OF_TIMEOUT = 0.7  # for the ranks; the rest is for the start and the answer


def run(request: Request) -> dict[str, Any]:
    """`all`: size -> {seconds, bus_bytes_per_s} between all ranks; `within`: of a node's ranks."""
    if "rank" in request:
        return _rank(request)
    first = request["nodes"].index(this_node(request)) * request["per_node"]
    timeout_s = request["timeout_s"] * _SHARE_OF_TIMEOUT
    program = [sys.executable, "-m", "launch.doctor.node", "collectives"]
    ranks = []
    for rank in range(first, first + request["per_node"]):
        words = json.dumps({**request, "rank": rank, "timeout_s": timeout_s})
        ranks.append(subprocess.Popen([*program, words], stdout=subprocess.PIPE, text=True))
    answers = read_answers(line for one in ranks for line in one.communicate()[0].splitlines())
    if len(answers) < request["per_node"]:
        raise TimeoutError(f"{request['backend']} made no connection within {timeout_s:.0f} s")
    for answer in answers.values():
        if "error" in answer:
            raise ConnectionError(answer["error"])
    return dict(next(iter(answers.values()))["facts"])


def _rank(request: Request) -> dict[str, Any]:
    """One rank: joins the group, then measures with all the others."""
    import torch
    import torch.distributed as dist

    backend, rank, per_node = request["backend"], request["rank"], request["per_node"]
    head, port = request["nodes"][0], request["port"]
    world = len(request["nodes"]) * per_node
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank % per_node)
        torch.cuda.set_device(device)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{head}:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=request["timeout_s"] * 0.8),
    )
    facts: dict[str, Any] = {"world": world, "all": _sizes(backend, world, device, None)}
    if 1 < per_node < world:
        group, _ = dist.new_subgroups(per_node)
        facts["within"] = _sizes(backend, per_node, device, group)
    dist.barrier()
    return facts


def _sizes(backend: str, world: int, device: Any, group: Any) -> dict[str, dict[str, float]]:
    """Size in bytes -> median seconds, and the bus bandwidth. All ranks do the same number."""
    import torch
    import torch.distributed as dist

    measured = {}
    for size in _SIZES[backend]:
        values = torch.zeros(size // 4, device=device)

        def once(values: Any = values) -> float:
            start = time.perf_counter()
            dist.all_reduce(values, group=group)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - start

        once()
        # The slowest of the ranks says how often, so that all do the same.
        longest = torch.tensor([once()], device=device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
        times = int(min(_AT_MOST, max(_AT_LEAST, _FOR_S / max(longest.item(), 1e-6))))
        seconds = statistics.median(once() for _ in range(times))
        bus = size / seconds * 2 * (world - 1) / world
        measured[str(size)] = {"seconds": seconds, "bus_bytes_per_s": bus}
    return measured
