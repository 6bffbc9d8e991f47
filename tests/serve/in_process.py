"""Requests to an application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import httpx

from mmsa.serve.gate import Gate
from mmsa.serve.service import Service


class InProcess:
    """Sends requests without a socket; `together` sends several at once."""

    def __init__(self, transport: httpx.ASGITransport, gate: Gate, service: Service) -> None:
        self.transport = transport
        self.gate = gate
        self.service = service

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.together([(method, path, more)])[0]

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)

    def together(self, requests: list[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
        async def send() -> list[httpx.Response]:
            async with httpx.AsyncClient(
                transport=self.transport, base_url="http://server", timeout=60
            ) as client:
                sent: list[Coroutine[Any, Any, httpx.Response]] = [
                    client.request(method, path, **more) for method, path, more in requests
                ]
                return list(await asyncio.gather(*sent))

        return asyncio.run(send())
