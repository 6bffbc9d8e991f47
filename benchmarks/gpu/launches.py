"""A training launch under observation: its steps, its processes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu.bench import ROOT, Bench, launcher
from benchmarks.gpu.kill_tree import kill_tree
from benchmarks.gpu.outcome import Failed, shortened

STARTS_WITHIN_S, ENDS_WITHIN_S = 600.0, 180.0
_CUDA_MEMORY = "/dev/nvidia-uvm"  # open in every process that has a CUDA context


class Launch:
    """`train.py` on a run directory, started by the constructor."""

    def __init__(
        self, bench: Bench, run_dir: Path, settings: list[str], processes: int = 1
    ) -> None:
        self.run_dir, self._bench = run_dir, bench
        self._log = run_dir / "log.txt"
        self._begins = self._log.stat().st_size if self._log.exists() else 0
        self.output = run_dir.with_name(f"{run_dir.name}.out")
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*launcher("ddp", processes), "train.py", *settings],
                cwd=ROOT,
                env=bench.environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_steps(self, number: int = 3) -> None:
        """Until this launch has logged so many steps; `Failed` where it ends before."""

        def there() -> bool:
            log = self._log.read_bytes()[self._begins :].decode() if self._log.exists() else ""
            return len(re.findall(r" step \d+/\d+ ", log)) >= number

        self.wait_until(there, "its first steps")

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        limit_s = self._bench.at_most(STARTS_WITHIN_S)
        deadline = time.monotonic() + limit_s
        while not true():
            if self.process.poll() is not None:
                raise Failed(f"ended before {what}: {shortened(self.output.read_text()[-400:])}")
            if time.monotonic() > deadline:
                self.kill()
                raise Failed(f"{what}: not seen in {limit_s:.0f} s")
            time.sleep(0.01)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        return [
            one
            for one in psutil.Process(self.process.pid).children()
            if "train.py" in one.cmdline()
        ]

    def loader_workers(self) -> list[psutil.Process]:
        """The loader processes of all ranks: below a process that forks them on request."""
        below = [one for rank in self.ranks() for one in rank.children(recursive=True)]
        parents = {one.pid for rank in self.ranks() for one in rank.children()}
        return [one for one in below if one.ppid() in parents and "forkserver" in _words(one)]

    def with_context(self) -> list[int]:
        """The processes of the launch that have a CUDA context, by what they have open."""
        found = []
        for one in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(OSError):
                links = [os.readlink(link) for link in Path(f"/proc/{one.pid}/fd").iterdir()]
                if _CUDA_MEMORY in links:
                    found.append(one.pid)
        return found

    def wait(self) -> int:
        """The launcher's exit code; `Failed` where it does not end."""
        limit_s = self._bench.at_most(ENDS_WITHIN_S)
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"did not end in {limit_s:.0f} s") from None

    def kill(self) -> None:
        """kill -9 of every process, as a power cut would."""
        kill_tree(self.process)

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return content


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def losses(run_dir: Path) -> list[float]:
    """The losses of the steps, in their order."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]
