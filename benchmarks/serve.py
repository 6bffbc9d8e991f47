"""Requests a second and their times: `python -m mmsa serve` next to a naive server.

    python -m benchmarks.serve EXPORT [--clients 16] [--requests N] [--memory N] [--json FILE]

EXPORT is of a model that reads both modalities. Both servers run on the same machine, one after the
other; the clients are threads of this process, each with one connection that it keeps. Posts are
made up: texts of 4 to 30 words, JPEGs of 640 x 480. `cpu_ms` is CPU time of the server per request,
which says more than the rest where the machine has other work. Also measured: one client next to
`mmsa.load(EXPORT).predict([text], [image])` in this process, and with --memory N the memory of our
server over N requests.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import write_json

WORDS = "what a day this is not my best one and the train was late again but I love it so much"


def posts(count: int) -> list[tuple[str, bytes]]:
    """Made-up posts: a text, and a JPEG."""
    import numpy as np
    from PIL import Image

    draw = random.Random(0)
    made = []
    for number in range(count):
        words = [draw.choice(WORDS.split()) for _ in range(draw.randint(4, 30))]
        coarse = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        made.append((" ".join(words), buffer.getvalue()))
    return made


def bodies(made: list[tuple[str, bytes]]) -> list[bytes]:
    return [
        json.dumps({"text": text, "image": base64.b64encode(image).decode()}).encode()
        for text, image in made
    ]


@contextmanager
def server(*command: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that answers at `port`."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def load(
    port: int, sent: list[bytes], *, clients: int, requests: int, pid: int
) -> dict[str, float]:
    """Send `requests` from `clients` threads to the server process `pid`: what they took."""
    import psutil

    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    times: list[float] = []
    numbers = iter(range(requests))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        headers = {"Content-Type": "application/json"}
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            begin = time.perf_counter()
            connection.request("POST", "/predict", sent[number % len(sent)], headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            times.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    times.sort()
    return {
        "cpu_ms": 1000 * (sum(process.cpu_times()[:2]) - before) / requests,
        "per_s": requests / seconds,
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * times[min(len(times) - 1, int(0.99 * len(times)))],
    }


def in_python(export: Path, made: list[tuple[str, bytes]], repeats: int) -> float:
    """Median milliseconds of a post in Python."""
    import mmsa

    predictor = mmsa.load(export)
    times = []
    for number in range(repeats):
        text, image = made[number % len(made)]
        begin = time.perf_counter()
        predictor.predict([text], [image])
        times.append(time.perf_counter() - begin)
    return 1000 * sorted(times)[repeats // 2]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    import psutil

    made = posts(32)
    sent = bodies(made)
    found: dict[str, Any] = {}
    for name in ("naive", "ours"):
        port = free_port()
        command = (
            ["-m", "benchmarks.serve_naive", str(arguments.export), str(port)]
            if name == "naive"
            else ["-m", "mmsa", "serve", str(arguments.export), "--port", str(port)]
        )
        with server(*command, port=port) as process:
            load(port, sent, clients=2, requests=20, pid=process.pid)  # warm up
            one = load(
                port, sent, clients=1, requests=max(20, arguments.requests // 8), pid=process.pid
            )
            many = load(
                port,
                sent,
                clients=arguments.clients,
                requests=arguments.requests,
                pid=process.pid,
            )
            found[name] = {"one_client": one, "many_clients": many}
            if name == "ours" and arguments.memory:
                memory = [psutil.Process(process.pid).memory_info().rss]
                for _ in range(4):
                    load(
                        port,
                        sent,
                        clients=arguments.clients,
                        requests=arguments.memory // 4,
                        pid=process.pid,
                    )
                    memory.append(psutil.Process(process.pid).memory_info().rss)
                found["memory_mib"] = [round(one / 2**20) for one in memory]
    found["predict_ms"] = in_python(arguments.export, made, 40)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments)
    for name in ("naive", "ours"):
        for clients, row in found[name].items():
            shown = ", ".join(f"{key} {value:.1f}" for key, value in row.items())
            print(f"{name}, {clients.replace('_', ' ')}: {shown}")
    ours, naive = found["ours"], found["naive"]
    ratio = ours["many_clients"]["per_s"] / naive["many_clients"]["per_s"]
    over = ours["one_client"]["p50_ms"] - found["predict_ms"]
    print(f"ours answers {ratio:.2f} times as many requests; one client: {over:+.1f} ms to predict")
    if "memory_mib" in found:
        print(f"memory of ours in MiB: {found['memory_mib']}")
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
