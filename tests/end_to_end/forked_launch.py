"""Launches by `fork_server.py`, from the side of a test: like `subprocess.Popen`."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

_SERVER = Path(__file__).with_name("fork_server.py")
_STARTS_WITHIN_S = 120.0


class _Server:
    """The server of this process, started when it is first needed; it ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._numbers = itertools.count()
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, str(_SERVER)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._lock:
                if "pid" in told:
                    self._pids[told["id"]] = told["pid"]
                else:
                    self._codes[told["ended"]] = told["code"]
                self._lock.notify_all()

    def start(self, order: dict[str, Any]) -> int:
        """Start a launch; returns the pid of its launcher."""
        number = next(self._numbers)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "id": number}) + "\n")
        self._process.stdin.flush()
        with self._lock:
            assert self._lock.wait_for(lambda: number in self._pids, _STARTS_WITHIN_S)
            return self._pids[number]

    def wait(self, pid: int, timeout: float | None) -> int | None:
        """The exit code of a launcher, None where it still runs after `timeout` seconds."""
        with self._lock:
            self._lock.wait_for(lambda: pid in self._codes, timeout)
            return self._codes.get(pid)


_server: list[_Server] = []


class ForkedLaunch:
    """A launch with the interface of `subprocess.Popen`, so far as tests use it."""

    def __init__(
        self,
        arguments: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        deepspeed: bool,
        output: Path | None = None,
    ) -> None:
        """`arguments` of `accelerate`; with `output` that file gets both streams.

        With `deepspeed` the launcher imports it, once for all ranks.
        """
        if not _server:
            _server.append(_Server())
        self.args = ["accelerate", *arguments]
        self.returncode: int | None = None
        self._directory = tempfile.TemporaryDirectory()
        streams = [Path(self._directory.name) / name for name in ("stdout", "stderr")]
        self._stdout, self._stderr = streams if output is None else (output, output)
        self.pid = _server[0].start(
            {
                "arguments": arguments,
                "cwd": str(cwd),
                "env": env,
                "deepspeed": deepspeed,
                "stdout": str(self._stdout),
                "stderr": str(self._stderr),
            }
        )

    def poll(self) -> int | None:
        self.returncode = _server[0].wait(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self.returncode = _server[0].wait(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self._stdout.read_text(), self._stderr.read_text()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
