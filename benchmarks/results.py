"""What a benchmark says besides its figures: the machine, peak memory; tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any


def memory_mib() -> float:
    """Peak memory: of the GPU, or resident memory of this process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def machine() -> dict[str, Any]:
    """Facts of the machine, for benchmarks that do not import torch."""
    return {"machine": processor_name(), "cores": os.cpu_count()}


def processor_name() -> str:
    """The CPU as the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        if names:
            return names[0].split(":")[1].strip()
    return platform.machine()


def gpu_name() -> str:
    """The first GPU's name by the driver's own tool, without a context in this process."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.check_output(command, text=True).splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "a GPU of unknown name"


def hardware() -> dict[str, Any]:
    """Facts of the machine and the versions that a table must state."""
    import accelerate
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }


def markdown(headings: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *[[str(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(file: Path | None, content: Any) -> None:
    """Write the figures to the file given by `--json`, if any."""
    if file is not None:
        file.write_text(json.dumps(content, indent=1) + "\n")
