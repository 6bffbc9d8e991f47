"""A tiny export; a server in this process, and one of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serve.tiny_export import tiny_export

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="session")
def serving() -> None:
    """Skips these tests where the extra mmsa[serve] is missing."""
    import importlib.util

    from tests.conftest import need

    names = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx")
    need("serve", all(importlib.util.find_spec(name) is not None for name in names))


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_export(tmp_path_factory.mktemp("served") / "best")


@pytest.fixture
def client(export: Path) -> Callable[..., AbstractContextManager[Any]]:
    """`with client(EXPORT, option=...) as http`: an httpx client of an application in this process,
    which is asked without a socket."""
    import httpx

    from mmsa.serve.app import create_app
    from mmsa.serve.counters import Counters
    from mmsa.serve.model import load_served
    from mmsa.serve.options import Options
    from mmsa.serve.service import Service
    from tests.serve.in_process import InProcess

    @contextmanager
    def started(path: Path = export, **options: Any) -> Iterator[InProcess]:
        chosen = Options(**{"threads": 1, **options})
        counters = Counters()
        service = Service(load_served(path, chosen, "cpu"), chosen, counters)
        service.start()
        try:
            gate = create_app(service, chosen, counters)
            yield InProcess(
                httpx.ASGITransport(app=gate, raise_app_exceptions=False), gate, service
            )
        finally:
            service.close()

    return started


class Server:
    """A real server process; `url` ends without a slash."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmsa", "serve", *arguments, "--port", "0", "--threads", "2"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        log = self.process.stderr
        assert log is not None
        for line in log:
            self.lines.append(line)
            if found := re.search(r"at (http://\S+?)/$", line.strip()):
                self.url = found[1]
                break
        else:
            raise AssertionError("".join(self.lines))
        # Read as it is written: a full pipe would stop the server.
        self._reader = threading.Thread(target=lambda: self.lines.extend(log), daemon=True)
        self._reader.start()

    def end(self) -> tuple[int, str]:
        """(exit code, what it logged), after SIGTERM."""
        self.process.terminate()
        return self.ended()

    def ended(self) -> tuple[int, str]:
        code = self.process.wait(timeout=60)
        self._reader.join(60)
        return code, "".join(self.lines)

    def memory_mib(self) -> float:
        import psutil

        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    """`server(EXPORT, "--option", ..., VARIABLE=...)`: starts one, ended after the test."""
    begun: list[Server] = []

    def start(*arguments: Any, **environment: str) -> Server:
        begun.append(Server(*map(str, arguments), **environment))
        return begun[-1]

    yield start
    for one in begun:
        if one.process.poll() is None:
            one.process.kill()
            one.ended()


def until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    """Wait until `true()`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
