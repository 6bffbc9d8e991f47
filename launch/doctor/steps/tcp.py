"""Every node connects to every other by TCP: who answers, by which interface, with which clock.

Clocks are compared as NTP does (RFC 5905, section 8): the peer's time against the middle of
sending and receiving, of the exchange with the shortest round trip, half of which bounds the error.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

from launch.doctor.node import Request, this_node
from mmsa.foundation.parsing import parse_json

_EXCHANGES = 16
_RETRY_S = 0.1
_SHARE_OF_TIMEOUT = 0.6  # for connecting; the rest is for the start and the answer


def run(request: Request) -> dict[str, Any]:
    """Peer -> how it was reached: {"error": ...}, or addresses, `rtt_s` and `offset_s`."""
    me, deadline = this_node(request), time.monotonic() + request["timeout_s"] * _SHARE_OF_TIMEOUT
    peers = [node for node in request["nodes"] if node != me]
    served = _Served(set(peers))
    listener = socket.create_server(("", request["ports"][me]), backlog=len(peers) + 8)
    threading.Thread(target=_serve, args=(listener, me, served), daemon=True).start()
    results: dict[str, Any] = {}

    def ask(peer: str) -> None:
        results[peer] = _reach(me, peer, request["ports"][peer], deadline)

    threads = [threading.Thread(target=ask, args=(peer,), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) + 5)
    served.all.wait(max(0.0, deadline - time.monotonic()))  # others may still be asking
    for peer in peers:
        results.setdefault(peer, {"error": "the connection hangs"})
    return {"peers": results}


class _Served:
    """Which peers have had all their answers."""

    def __init__(self, missing: set[str]) -> None:
        self._missing, self._lock, self.all = missing, threading.Lock(), threading.Event()
        if not missing:
            self.all.set()

    def add(self, peer: str) -> None:
        with self._lock:
            self._missing.discard(peer)
            if not self._missing:
                self.all.set()


def _serve(listener: socket.socket, me: str, served: _Served) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, me, served), daemon=True).start()


def _answer(connection: socket.socket, me: str, served: _Served) -> None:
    """Tell a peer who this is and what time it is, once for each line that it sends."""
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = ""
        for line in stream:
            peer = line.strip()
            print(json.dumps({"node": me, "time_ns": time.time_ns()}), file=stream, flush=True)
        served.add(peer)


def _reach(me: str, peer: str, port: int, deadline: float) -> dict[str, Any]:
    """Connect until `deadline`, as a peer may start later; then compare clocks."""
    last = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((peer, port), timeout=min(left, 5.0)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return _exchange(me, peer, connection)
        except OSError as error:
            last = str(error.strerror or error) or type(error).__name__
            threading.Event().wait(_RETRY_S)  # works also where a library fakes the time
    return {"error": last, "port": port}


def _exchange(me: str, peer: str, connection: socket.socket) -> dict[str, Any]:
    best: tuple[float, float] | None = None  # (round trip, offset), seconds
    with connection.makefile("rw", encoding="utf-8") as stream:
        for _ in range(_EXCHANGES):
            wall, start = time.time_ns(), time.perf_counter()
            print(me, file=stream, flush=True)
            answer = parse_json(stream.readline() or '{"node": "nobody", "time_ns": 0}')
            if answer["node"] != peer:
                return {"error": f"another node answers: {answer['node']}"}
            round_trip = time.perf_counter() - start
            offset = (answer["time_ns"] - wall) / 1e9 - round_trip / 2
            best = min(best or (round_trip, offset), (round_trip, offset))
    assert best is not None
    return {
        "local": connection.getsockname()[0],
        "remote": connection.getpeername()[0],
        "rtt_s": best[0],
        "offset_s": best[1],
    }
