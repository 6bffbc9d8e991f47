"""What every request passes before its route: token, draining, counters, a line in the log."""

from __future__ import annotations

import hmac
import logging
import time
import traceback
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmsa.errors import UserError
from mmsa.serve.counters import Counters
from mmsa.serve.options import Options
from mmsa.serve.problems import Problem, busy, internal

logger = logging.getLogger("mmsa.serve")

# Without a token: what a load balancer asks, and the page, which has a field for the token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/"})


class Gate:
    """ASGI middleware around the application; also counts the requests that are open."""

    def __init__(self, app: ASGIApp, options: Options, counters: Counters, paths: set[str]) -> None:
        self._app = app
        self._options = options
        self._counters = counters
        self.paths = paths
        self.in_flight = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.draining and status != 408:  # which closes by itself
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        self.in_flight += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal.response()(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)
        except Exception as error:
            _log_failure(error)
            if not status:
                await internal().response()(scope, receive, sending)
        finally:
            self.in_flight -= 1
            self._note(scope, status, time.perf_counter() - begin)

    def _refusal(self, scope: Scope) -> Problem | None:
        path = scope["path"]
        if self.draining and path not in OPEN_PATHS:
            return busy("the server is ending; ask another one or try again later", after_s=5)
        if self._options.token is None or path in OPEN_PATHS:
            return None
        given = _header(scope, b"authorization")
        expected = f"Bearer {self._options.token}".encode()
        if hmac.compare_digest(given, expected):
            return None
        return Problem(
            401,
            "the token is missing or wrong; send it as Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        # Other paths are a client's words, which are neither logged nor counted one by one.
        path = scope["path"] if scope["path"] in self.paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "OTHER"
        size = _header(scope, b"content-length").decode("ascii", "replace")
        self._counters.answered(path, status, seconds)
        read = f", {int(size):,} bytes" if size.isdecimal() and len(size) < 16 else ""
        logger.info("%s %s %s%s, %.1f ms", method, path, status or "cut", read, 1000 * seconds)


def _header(scope: Scope, name: bytes) -> bytes:
    found: Any = next((value for key, value in scope["headers"] if key == name), b"")
    return bytes(found)


def _log_failure(error: Exception) -> None:
    """Where an exception was raised, and its type. Not its message, which may quote a request."""
    if isinstance(error, UserError):
        logger.error("a request failed: %s", error)
        return
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed with %s\n%s", type(error).__name__, where)
