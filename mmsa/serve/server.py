"""One server process: it starts, answers, drains after SIGTERM or Ctrl-C, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmsa.errors import UserError
from mmsa.serve.app import create_app
from mmsa.serve.counters import Counters
from mmsa.serve.gate import Gate, logger
from mmsa.serve.model import ServedModel
from mmsa.serve.options import Options
from mmsa.serve.reload import watch
from mmsa.serve.service import Service
from mmsa.serve.training import Training

_BACKLOG = 2048
_IDLE_S = 30.0  # an idle connection is closed after this


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request head is not complete in time.

    uvicorn has a limit for idle connections alone, and a client that sends a byte a second is
    never idle.
    """

    head_timeout_s = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        if self._between_requests():
            self._wait_for_head()
        super().data_received(data)
        if not self._between_requests():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.head_timeout_s, self._too_late)

    def _too_late(self) -> None:
        self._timer = None
        if self._between_requests():
            self.transport.close()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: uvicorn would raise them again at the end, and not exit with 0."""
        yield


def bind(options: Options) -> socket.socket:
    """The socket, which refuses connections until `run`. Raises `UserError` where the address
    cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Named, because asyncio turns off the delay of small packets (40 ms) for TCP alone.
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host, as in a..b
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {options.host} port {options.port} ({why}); choose another --host "
            "or --port"
        ) from None
    return listening


def run(model: ServedModel, source: Any, options: Options, listening: socket.socket) -> None:
    """Serve `model` at `listening` until a signal; then answer what was accepted and return.

    `source` is the path that the model was opened with; `reload.watch` looks there for a newer one.
    """
    listening.listen(_BACKLOG)  # from now on connections wait, and are not refused
    asyncio.run(_serve(model, source, options, listening))


async def _serve(
    model: ServedModel, source: Any, options: Options, listening: socket.socket
) -> None:
    counters = Counters()
    service = Service(model, options, counters)
    training = None if options.training is None else Training(options)
    gate = create_app(service, options, counters, training)
    protocol = type("Protocol", (PatientProtocol,), {"head_timeout_s": options.timeout_s})
    server = _Server(
        uvicorn.Config(
            gate,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=int(_IDLE_S),
            backlog=_BACKLOG,
        )
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service.start()
    background = [
        loop.create_task(_drain(stop, gate, server, options)),
        loop.create_task(watch(service, source, options, training)),
    ]
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    if options.token is None and not ipaddress.ip_address(host.split("%")[0]).is_loopback:
        logger.warning("no --token-file: whoever reaches %s can use this server", host)
    logger.info("serving %s at http://%s:%d/", model.digest[:12], shown, port)
    try:
        await server.serve(sockets=[listening])
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if training is not None:
            training.close()
        await asyncio.to_thread(service.close)
    logger.info("ended: all accepted requests are answered")


async def _drain(stop: asyncio.Event, gate: Gate, server: uvicorn.Server, options: Options) -> None:
    """After a signal: refuse new requests, wait for the others, then end the server."""
    await stop.wait()
    gate.draining = True
    logger.info("ending: %d request(s) are still to be answered", gate.in_flight)
    with contextlib.suppress(TimeoutError):
        # A body may take its time, and its answer as much again.
        async with asyncio.timeout(2 * options.timeout_s + 5):
            while gate.in_flight:
                await asyncio.sleep(0.02)
    server.should_exit = True


def set_up_logging() -> None:
    """Lines on standard error: sizes and times of requests, nothing of their content."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.handlers.clear()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
