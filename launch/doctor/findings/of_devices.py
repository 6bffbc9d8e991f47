"""GPUs, and nodes or GPUs that are slower than the others."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from launch.doctor.findings.finding import ERROR, WARNING, ByNode, Finding, Level

STRAGGLER = 0.9  # of the median speed
_IN_USE_MIB = 1024  # by others
# NVML's bits of reasons that cost speed (nvml.h, nvmlClocksThrottleReason*): power cap,
# hardware slowdown, software and hardware thermal slowdown, power brake. Idle is not one.
_SLOWED = {0x08: "hardware slowdown", 0x20: "too hot", 0x40: "too hot", 0x80: "power brake"}


def stragglers(facts: ByNode) -> list[Finding]:
    """Nodes, or GPUs where there are any, over 10 % under the median of all."""
    found = _slow({node: one["cpu_flops_per_s"] for node, one in facts.items()}, "the cores of")
    gpus = {
        f"{node}:{gpu['index']}": gpu["bf16_flops_per_s"]
        for node, one in facts.items()
        for gpu in one["gpus"]
        if "error" not in gpu
    }
    return found + _slow(gpus, "GPU")


def _slow(speeds: Mapping[str, float], what: str) -> list[Finding]:
    if len(speeds) < 2:
        return []
    middle = median(speeds.values())
    return [
        Finding(
            WARNING,
            "stragglers",
            (name.partition(":")[0],),
            f"{what} {name} compute slowly: all ranks wait for the slowest",
            f"{speed / 1e9:.3g} GFLOP/s, {100 * (1 - speed / middle):.0f} % under the median",
            f"within 10 % of the median of {middle / 1e9:.3g} GFLOP/s",
            "look for other processes there (`top`), heat and power limits; or exclude the node: "
            f"--sbatch exclude={name.partition(':')[0]}",
        )
        for name, speed in speeds.items()
        if speed < STRAGGLER * middle
    ]


def gpus(facts: ByNode, expected: int) -> list[Finding]:
    """GPUs that are missing, in use, faulty, or slowed down."""
    found = []
    for node, one in facts.items():
        if len(one["gpus"]) < expected:
            found.append(
                _gpu(
                    ERROR,
                    node,
                    "fewer GPUs than requested can be used",
                    f"{len(one['gpus'])} by torch; the driver's tool says "
                    + (
                        str(one["nvidia_smi"][0].get("error", len(one["nvidia_smi"])))
                        if one["nvidia_smi"]
                        else "nothing"
                    ),
                    str(expected),
                    "compare `nvidia-smi` on the node with CUDA_VISIBLE_DEVICES; a torch for CPUs, "
                    "or for a newer driver, sees none",
                )
            )
        for gpu in one["gpus"]:
            if "error" in gpu:
                found.append(
                    _gpu(
                        ERROR,
                        node,
                        f"GPU {gpu['index']} does not compute",
                        gpu["error"],
                        "a matrix product in bf16",
                        "report it to the administrator, and exclude the node",
                    )
                )
            found += _under_load(node, gpu)
        for idle in one["nvidia_smi"]:
            found += _in_use(node, idle)
    return found


def _in_use(node: str, gpu: dict[str, str]) -> list[Finding]:
    index, found = gpu.get("index", "?"), []
    if _number(gpu.get("memory.used")) > _IN_USE_MIB:
        found.append(
            _gpu(
                WARNING,
                node,
                f"GPU {index} is in use",
                f"{gpu['memory.used']} MiB of {gpu.get('memory.total')} MiB",
                "free memory",
                "end the processes that `nvidia-smi` lists, or request nodes with --exclusive",
            )
        )
    if _number(gpu.get("ecc.errors.uncorrected.volatile.total")) > 0:
        found.append(
            _gpu(
                ERROR,
                node,
                f"GPU {index} has memory errors that were not corrected",
                gpu["ecc.errors.uncorrected.volatile.total"],
                "0",
                "report it to the administrator, and exclude the node",
            )
        )
    return found


def _under_load(node: str, gpu: dict[str, Any]) -> list[Finding]:
    found = []
    for one in gpu.get("under_load", []):
        if one.get("index") != str(gpu["index"]):
            continue
        text = one.get("clocks_throttle_reasons.active", "0")
        try:
            bits = int(text, 16)
        except ValueError:  # [N/A]
            continue
        reasons = [reason for bit, reason in _SLOWED.items() if bits & bit]
        if reasons:
            found.append(
                _gpu(
                    WARNING,
                    node,
                    f"GPU {gpu['index']} lowers its clocks under load",
                    f"{', '.join(dict.fromkeys(reasons))}, {one.get('temperature.gpu')} C",
                    "full clocks",
                    "report it to the administrator: cooling or power supply",
                )
            )
    return found


def _gpu(level: Level, node: str, what: str, found: str, expected: str, do: str) -> Finding:
    return Finding(level, "gpus", (node,), what, found, expected, do)


def _number(text: str | None) -> float:
    """0 for what is not a number, such as [N/A]."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
