"""How fast this node computes: a matrix product on its cores, and on each of its GPUs.

A product of two n x n matrices takes 2 n^3 operations (Golub and Van Loan, Matrix Computations,
section 1.1.11). Speed is all products over all time: a pause counts, as it does in a step.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

from launch.doctor.node import Request

_CPU_SIZE, _CPU_S = 512, 3.0
_GPU_SIZE, _GPU_S = 8192, 3.0
_COPIED = 256 << 20  # bytes to a GPU, at a time
# nvidia-smi speaks to NVML, in a process of its own: a broken driver hangs whoever asks it.
_QUERY = (
    *("index", "uuid", "name", "memory.total", "memory.used", "temperature.gpu"),
    *("ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.active"),
)
_QUERY_TIMEOUT_S = 20.0


def run(request: Request) -> dict[str, Any]:
    """`cpu_flops_per_s`, `threads`, `gpus`; `nvidia_smi`: its words before any use of them."""
    idle = nvidia_smi()  # before this process takes memory itself
    import torch

    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpu_flops_per_s": _cpu_flops_per_s(),
        "nvidia_smi": idle,
        "gpus": [],
    }
    if torch.cuda.is_available():
        facts["cuda"] = torch.version.cuda
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        facts["gpus"] = [_gpu(number) for number in range(torch.cuda.device_count())]
    return facts


def nvidia_smi() -> list[dict[str, str]]:
    """What NVIDIA's tool says of each GPU; [{"error": ...}] where it fails, [] without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [{"error": str(error)}]
    if done.returncode:
        return [{"error": " ".join(f"{done.stdout} {done.stderr}".split())[:300]}]
    rows = [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(_QUERY, row, strict=False)) for row in rows]


def _cpu_flops_per_s() -> float:
    import torch

    one, other = (torch.ones(_CPU_SIZE, _CPU_SIZE) for _ in range(2))
    torch.mm(one, other)  # the first one loads the kernels
    products, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < _CPU_S:
        torch.mm(one, other)
        products += 1
    return products * 2.0 * _CPU_SIZE**3 / seconds


def _gpu(number: int) -> dict[str, Any]:
    """Identity, free memory, bf16 speed, copy bandwidth, and the clocks under load."""
    import torch

    device = torch.device("cuda", number)
    try:
        free, total = torch.cuda.mem_get_info(device)
        properties = torch.cuda.get_device_properties(device)
        one, other = (
            torch.randn(_GPU_SIZE, _GPU_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2)
        )
        torch.mm(one, other)
        torch.cuda.synchronize(device)
        products, start = 0, time.perf_counter()
        while time.perf_counter() - start < _GPU_S:
            for _ in range(20):
                torch.mm(one, other)
            products += 20
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        for _ in range(200):  # keeps the GPU busy while its clocks are asked for
            torch.mm(one, other)
        loaded = nvidia_smi()
        torch.cuda.synchronize(device)
        return {
            "index": number,
            "name": properties.name,
            "uuid": str(getattr(properties, "uuid", "")),
            "total_bytes": total,
            "free_bytes": free,
            "bf16_flops_per_s": products * 2.0 * _GPU_SIZE**3 / seconds,
            "copy_bytes_per_s": _copy_bytes_per_s(device),
            "under_load": loaded,
        }
    except RuntimeError as error:
        return {"index": number, "error": str(error).splitlines()[0][:300]}


def _copy_bytes_per_s(device: Any) -> float:
    import torch

    source = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(4):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    return 4 * _COPIED / (time.perf_counter() - start)
