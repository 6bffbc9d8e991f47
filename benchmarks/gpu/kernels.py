"""In a measuring process: what the device did in a few steps, and how fast ranks add up numbers."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch

from benchmarks import real_run
from benchmarks.gpu.steps import finish
from mmsa.training.profile import length, merged

Found = dict[str, Any]


def traced(settings: list[str], warm: int, steps: int, file: str) -> Found:
    """The ten kernels that took longest (operations on a CPU), and the share without any.

    The trace goes to `file`, for https://ui.perfetto.dev.
    """
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder:
        config, run = real_run.start_run([*settings, f"run.dir={folder}"])
        for _ in range(warm):
            real_run.one_step(config, run)
        finish()
        with torch.profiler.profile() as profiler:
            begin = time.perf_counter()
            for _ in range(steps):
                real_run.one_step(config, run)
            finish()
            spent_ms = 1e3 * (time.perf_counter() - begin)
    profiler.export_chrome_trace(file)
    # As in `run.profile`: ranges that somebody named come back as events of the GPU.
    kind = "DeviceType.CUDA" if on_gpu else "DeviceType.CPU"
    work = [
        event
        for event in profiler.events()
        if str(event.device_type) == kind
        and not event.is_user_annotation
        and (on_gpu or event.name.startswith("aten::"))
    ]
    busy = merged([(one.time_range.start / 1e3, one.time_range.end / 1e3) for one in work])
    total: dict[str, list[float]] = {}
    for event in work:
        own = (event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total) / 1e3
        total.setdefault(event.name, []).append(own)
    top = sorted(total, key=lambda name: -sum(total[name]))[:10]
    return {
        "on_gpu": on_gpu,
        "ms_per_step": spent_ms / steps,
        "idle": max(0.0, 1 - length(busy) / spent_ms),
        "top": [
            {
                "name": name,
                "ms_per_step": sum(total[name]) / steps,
                "times_per_step": len(total[name]) / steps,
            }
            for name in top
        ],
    }


def bandwidth(mib: list[int], repeats: int) -> list[Found]:
    """All-reduce of float32 by size: GB/s of the wire, 2 (n - 1) / n bytes for each byte.

    The count is that of NVIDIA's nccl-tests (PERFORMANCE.md, "bus bandwidth").
    """
    from mmsa.engines.engine import make_accelerator

    accelerator = make_accelerator("no")
    world, rows = accelerator.num_processes, []
    for size in mib:
        numbers = torch.zeros(size * 2**18, device=accelerator.device)
        for _ in range(3):
            torch.distributed.all_reduce(numbers)
        finish()
        begin = time.perf_counter()
        for _ in range(repeats):
            torch.distributed.all_reduce(numbers)
        finish()
        seconds = (time.perf_counter() - begin) / repeats
        on_wire = 2 * (world - 1) / world * size * 2**20
        rows.append({"mib": size, "ms": 1e3 * seconds, "gb_per_s": on_wire / seconds / 1e9})
    return rows
