"""The machine as the stages see it: what it has, and how something is run on it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import real_run
from benchmarks.gpu.child import MARK, fresh_accelerate, run_here
from benchmarks.gpu.kill_tree import kill_tree
from benchmarks.gpu.outcome import Failed, NotRun, shortened

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_FILES = {
    name: f"launch/accelerate/{name}.yaml" for name in ("ddp", "zero1", "zero2", "zero3")
}


@dataclass(frozen=True)
class Bench:
    """One machine, and one directory for all that the stages write."""

    out: Path
    tiny: bool
    gpus: int  # 0: the stages run on CPU processes
    seconds: float  # measured time of each arm
    in_process: bool = False  # one process for everything that needs no launcher, for tests
    ends_at: float = math.inf  # `time.monotonic()` after which nothing that was begun goes on

    @property
    def on_gpu(self) -> bool:
        return self.gpus > 0

    @property
    def size(self) -> str:
        """Of the encoders whose correctness is looked at; see `real_run.SIZES`."""
        return "tiny" if self.tiny else "small"

    @property
    def fast_size(self) -> str:
        """Of the encoders whose speed is measured."""
        return "tiny" if self.tiny else "large"

    def at_most(self, seconds: float) -> float:
        """`seconds`, or what is left of the whole time, but enough to end in order."""
        return min(seconds, max(20.0, self.ends_at - time.monotonic()))

    def need_gpu(self, what: str) -> None:
        if not self.on_gpu:
            raise NotRun(f"{what} needs a GPU")

    def shards(self) -> str:
        """The made-up data, packed on the first call."""
        place = self.out / "data"
        packed = place / "shards"
        if not (packed / "manifest.json").is_file():
            from shards.__main__ import main as shards_main

            # Enough for one step of all GPUs, four fifths being for training.
            whole = str(max(2000, 400 * self.gpus))
            samples, side = ("160", "64") if self.tiny else (whole, "256")
            raw = str(place / "raw")
            assert shards_main(["synthetic", raw, "--samples", samples, "--quiet"]) == 0
            side_px = ["--image-short-side", side]
            command = ["pack", "mvsa-single", raw, str(packed), *side_px, "--quiet"]
            assert shards_main(command) == 0
        return str(packed)

    def settings(self, size: str, run_dir: Path | str) -> list[str]:
        """Settings of a run with fresh encoders of `size` on the made-up data."""
        tokenizer = "words:500" if self.tiny else "words:30000"
        return real_run.settings_of(size, self.shards(), str(run_dir), tokenizer)

    def environment(self, **more: str) -> dict[str, str]:
        """Of everything that is started; without a GPU one thread for each process."""
        found = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **more}
        return found if self.on_gpu else {"OMP_NUM_THREADS": "1", **found}

    def child(self, work: str, engine: str = "ddp", processes: int = 1, **asked: Any) -> Any:
        """What a function of `child.WORKS` returns, in processes of its own under `engine`.

        In its own process memory, switches and a broken context are those of one arm. Raises
        `Failed` with its last error. "single": without a launcher.
        """
        if self.in_process and processes == 1 and engine in ("single", "ddp"):
            return run_here(work, asked)
        asking = ["--work", work, "--asked", json.dumps(asked)]
        command = [*launcher(engine, processes), "-m", "benchmarks.gpu.child", *asking]
        ended = self.run(command, limit_s=asked.get("limit_s", 240.0))
        lines = [line for line in ended.stdout.splitlines() if line.startswith(MARK)]
        if not lines:
            raise Failed(last_error(ended))
        return json.loads(lines[-1].removeprefix(MARK))

    def run(
        self, command: list[str], limit_s: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A command until its end, or until it is killed with all below it (`Failed`).

        `limit_s` is for a GPU; CPU processes, which wait for each other's cores, get five times it.
        """
        limit_s = self.at_most(limit_s if self.on_gpu else 5 * limit_s)
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            raise Failed(f"not finished after {limit_s:.0f} s") from None
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    def train(
        self,
        settings: list[str],
        engine: str = "ddp",
        processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`train.py` to its end; `Failed` where it does not end well."""
        if self.in_process and engine == "single" and not environment:
            from train import main as train_main

            code = train_main(settings)
            fresh_accelerate()
            if code != 0:
                raise Failed(f"train.py ended with {code}")
            return
        command = [*launcher(engine, processes), "train.py", *settings]
        ended = self.run(command, limit_s=300.0, **(environment or {}))
        if ended.returncode != 0:
            raise Failed(last_error(ended))


def launcher(engine: str, processes: int) -> list[str]:
    """The words before a script that start it under `engine`."""
    if engine == "single":
        return [sys.executable]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", CONFIG_FILES[engine], "--num_processes", str(processes)]
    return [*launch, "--main_process_port", "0"]


def last_error(ended: subprocess.CompletedProcess[str]) -> str:
    """The line that says why a process ended, else the end of what it said."""
    lines = [line for line in ended.stderr.splitlines() if "rror: " in line or "rror:" in line]
    told = [line for line in lines if "ChildFailedError" not in line]
    return shortened((told or [ended.stderr[-300:] or f"ended with {ended.returncode}"])[0])


def gpu_count() -> int:
    """How many GPUs there are, without a context on any of them in this process."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.device_count()
