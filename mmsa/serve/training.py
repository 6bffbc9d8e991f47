"""`POST /train_model`: one training at a time, started as a run of its own.

The client chooses nothing: configuration and number of processes are the operator's. Each run has
a new directory, `run.dir` of the configuration with the time behind it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mmsa.config import load_config
from mmsa.errors import UserError
from mmsa.extensions import as_options
from mmsa.foundation.parsing import read_json_objects
from mmsa.process.status import STATUS_NAME, read_status
from mmsa.serve.options import Options
from mmsa.serve.problems import Problem

METRICS_NAME = "metrics.jsonl"
_TAIL_BYTES = 1 << 16
_SHOWN = ("step", "epoch", "loss", "accuracy", "macro_f1", "weighted_f1")


class Training:
    """Starts the training of `options.training`, and says how far it is."""

    def __init__(self, options: Options) -> None:
        assert options.training is not None
        if options.token is None:
            raise UserError(
                "--training lets clients start trainings, which needs a token: give --token-file"
            )
        self._configuration = options.training.resolve()
        self._processes = options.training_processes
        self._imports = as_options(options.imports)
        run_dir = load_config(str(self._configuration)).run.dir
        if run_dir is None:
            raise UserError(f"--training {options.training}: it has no run.dir; set one")
        self._base = Path(run_dir)
        self._process: subprocess.Popen[bytes] | None = None
        self._run: Path | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> dict[str, Any]:
        """Start a run. Raises `Problem` 409 while one is running."""
        async with self._starting:  # two requests at once are one start
            return await self._start()

    async def _start(self) -> dict[str, Any]:
        if self._is_running():
            raise Problem(409, "a training is running already; see GET /train_model")
        name = f"{self._base.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._run = self._base.with_name(name)
        command = [
            *[sys.executable, "-m", "launch", "run", "-n", str(self._processes)],
            *[str(self._configuration), f"run.dir={self._run}", *self._imports],
        ]
        # Its own session: Ctrl-C at the server's terminal reaches it through `close` alone.
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ.copy(),
        )
        return self.state()

    def state(self) -> dict[str, Any]:
        """What `GET /train_model` answers: the run's state, its step and its last scores."""
        if self._run is None or self._process is None:
            return {"state": "none", "run": None}
        status = read_status(self._run / STATUS_NAME)
        code = self._process.poll()
        state = "running" if code is None else ("done" if code == 0 else "failed")
        return {
            "state": state,
            "run": self._run.name,
            "exit_code": code,
            "step": status.get("step", 0),
            "last": _last_lines(self._run / METRICS_NAME),
        }

    def run_with_a_model(self) -> Path | None:
        """The directory of the run, once it has a best export."""
        if self._run is not None and (self._run / "best").exists():
            return self._run
        return None

    def close(self) -> None:
        """Ask a running training to save and end, and wait for it: its run can be resumed."""
        if self._process is not None and self._is_running():
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _last_lines(metrics: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each kind (train, validation) in a run's metrics."""
    found: dict[str, dict[str, Any]] = {}
    for content in read_json_objects(metrics, last_bytes=_TAIL_BYTES):
        kind = str(content.get("kind"))
        found[kind] = {name: content[name] for name in _SHOWN if name in content}
    return found
