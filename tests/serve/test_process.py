"""A real server process: how it starts, what a slow client costs others, how it ends."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mmsa.serve import command, server
from mmsa.serve.options import Options
from tests.serve.conftest import ROOT, until
from tests.serve.tiny_export import post


def test_slow_clients_hold_up_nobody_and_sigterm_loses_no_request(
    server: Callable[..., Any], export: Path
) -> None:
    """One start for both: clients that send a byte now and then, then SIGTERM under load."""
    running = server(export, "--timeout-s", "6", "--max-wait-ms", "1")
    host, port = running.url.removeprefix("http://").split(":")
    heads = [
        b"POST /predict HTTP/1.1\r\n",  # the head never ends
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n",  # the body never ends
    ]
    slow = [socket.create_connection((host, int(port))) for _ in range(40)]
    for number, one in enumerate(slow):
        one.sendall(heads[number % 2])
    with httpx.Client(base_url=running.url, timeout=30) as client:
        for number in range(3):
            assert client.post("/predict", json=post(number)).status_code == 200
            for one in slow[:-1]:
                with contextlib.suppress(OSError):  # a busy machine may be later than the limit
                    one.send(b"x")
        ended = [_read_all(one) for one in slow]
    # The last one sent no byte after its head, so nothing threw its answer away.
    assert ended[-1].startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in ended[-1].lower()
    assert all(answer == b"" for answer in ended[::2])
    # Empty where a byte that arrived after the answer made the system throw it away.
    assert {answer[:13] for answer in ended[1::2]} <= {b"HTTP/1.1 408 ", b""}

    answers: list[int] = []
    broken: list[str] = []
    threads = [
        threading.Thread(target=_ask_until_refused, args=(running.url, number, answers, broken))
        for number in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 30)
    code, log = running.end()
    for thread in threads:
        thread.join(30)
    assert code == 0
    assert broken == []
    assert set(answers) <= {200, 503}
    assert log.rstrip().endswith("ended: all accepted requests are answered")
    # Nothing of a request is in the log.
    assert "what a day" not in log
    assert "POST /predict 200" in log


def _read_all(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    found = b""
    try:
        while part := connection.recv(4096):
            found += part
    except ConnectionResetError:
        pass
    connection.close()
    return found


def _ask_until_refused(url: str, number: int, answers: list[int], broken: list[str]) -> None:
    """Send requests until one is refused, or the connection can not be made.

    Each request that was sent whole has an answer, or its connection was closed before the server
    began to read it (the client may then repeat it)."""
    with httpx.Client(base_url=url, timeout=30) as client:
        while True:
            try:
                answer = client.post("/predict", json=post(number))
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError) as error:
                if "incomplete" in str(error):
                    broken.append(str(error))
                return
            answers.append(answer.status_code)
            if answer.status_code != 200:
                return


def test_a_damaged_export_or_a_wrong_option_ends_the_command(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmsa.__main__ import main

    damaged = Path(shutil.copytree(export, tmp_path / "damaged"))
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)
    short = tmp_path / "token"
    short.write_text("short\n")
    for arguments, says in (
        ([damaged], "is damaged: model.safetensors"),
        ([tmp_path / "none"], "is not a run directory, an export"),
        ([export, "--max-batch", "0"], "--max-batch: Input should be greater than or equal to 1"),
        ([export, "--token-file", short], "has no usable token"),
        ([export, "--host", "203.0.113.1"], "cannot listen at 203.0.113.1 port 8000"),
        ([export, "--host", "a..b"], "cannot listen at a..b port 8000"),
        ([export, "--max-body-mb", "nan"], "--max-body-mb nan: expected a number of megabytes"),
        ([export, "--max-body-mb", "inf"], "--max-body-mb inf: expected a number of megabytes"),
    ):
        assert main(["serve", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert says in said
        assert said.count("\n") == 1


def test_help_imports_neither_torch_nor_fastapi() -> None:
    code = (
        "import sys, mmsa.__main__ as main\n"
        "try: main.main(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'fastapi', 'uvicorn', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--max-wait-ms" in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, export: Path) -> None:
    import argparse

    from mmsa.errors import UserError

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(UserError, match=r"python_multipart is not installed.*mmsa\[serve\]"):
        command.run(parser.parse_args([str(export)]))


def test_small_packets_are_not_held_back() -> None:
    """asyncio turns the delay off (40 ms an answer) only for sockets that are named as TCP."""
    with server.bind(Options(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP
