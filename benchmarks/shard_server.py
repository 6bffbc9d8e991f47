"""A real HTTP server of a folder, with ranges and entity tags, that counts and can misbehave.

A fault is a function of a request's path; it is asked at each GET of a file and says what to do.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What a fault answers: None (serve), a status code, (status code, body), "cut" (half the body),
# "stall" (half, then nothing until the client leaves), "other" (a body with a changed byte), a URL
# (redirect there).
COUNTS = "/counts"  # a request that answers with `sent` and begins to count again
Answer = int | str | tuple[int, str] | None
Fault = Callable[[str], Answer]


class ShardServer:
    """The files under `folder` at `url`; `sent` counts the bytes of bodies by file name."""

    def __init__(self, folder: Path, *, port: int = 0, latency_s: float = 0.0) -> None:
        self.folder = folder
        self.fault: Fault = lambda name: None
        self.sent: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.authorizations: list[tuple[str, str | None]] = []
        self.latency_s = latency_s
        self.bytes_per_s: float | None = None
        self.is_closed = False
        self._free_at = 0.0
        self.lock = threading.Lock()
        server = self

        class Handler(_Handler):
            shards = server

        self._server = _Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """End as a process does: connections that are open are cut."""
        self.is_closed = True
        self._server.shutdown()
        self._server.cut_all()
        self._server.server_close()
        self._thread.join()

    def wait_for_bandwidth(self, num_bytes: int) -> None:
        """Share `bytes_per_s` among all connections."""
        if self.bytes_per_s is None:
            return
        with self.lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + num_bytes / self.bytes_per_s
            pause = self._free_at - now
        time.sleep(pause)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has left."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def cut_all(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    shards: ShardServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.path == COUNTS:
            content = json.dumps(self.shards.sent).encode()
            self.shards.sent.clear()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        name = self.path.partition("?")[0].lstrip("/")
        server = self.shards
        server.authorizations.append((name, self.headers.get("Authorization")))
        server.requests[f"{self.command} {name}"] += 1
        time.sleep(server.latency_s)
        fault = server.fault(name) if body else None
        if server.is_closed:
            self.close_connection = True
            return
        if isinstance(fault, tuple):
            self.send_response(fault[0])
            self.send_header("Content-Length", str(len(fault[1])))
            self.end_headers()
            self.wfile.write(fault[1].encode())
            return
        if isinstance(fault, str) and fault.startswith("http"):
            self.send_response(302)
            self.send_header("Location", fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = server.folder / name
        if isinstance(fault, int) or not path.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        at = path.stat()
        tag, total = f'"{at.st_ino:x}-{at.st_mtime_ns:x}-{at.st_size:x}"', at.st_size
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.send_header("ETag", tag)
            self.end_headers()
            return
        start, end = 0, total
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else total
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(max(0, end - start))
        if fault == "other" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{total}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", self.date_time_string(int(at.st_mtime)))
        self.end_headers()
        if not body:
            return
        half = len(content) // 2
        try:
            self._send(name, content[:half] if fault in ("cut", "stall") else content)
            if fault == "stall":
                self.connection.recv(1)  # the end of the client's side
            if fault in ("cut", "stall"):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            self.close_connection = True

    def _send(self, name: str, content: bytes) -> None:
        for first in range(0, len(content), 1 << 16):
            piece = content[first : first + (1 << 16)]
            self.shards.wait_for_bandwidth(len(piece))
            if self.shards.is_closed:
                raise ConnectionAbortedError
            with self.shards.lock:  # before the client can have it, who then asks for the count
                self.shards.sent[name] += len(piece)
            self.wfile.write(piece)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[ShardServer]:
    server = ShardServer(folder, **options)
    try:
        yield server
    finally:
        server.close()
