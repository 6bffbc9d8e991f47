"""Errors of the API, as problem+json (RFC 9457).

A problem says what the client can change. It never has a path of this machine or a traceback.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is not a success: HTTP `status`, and a sentence for the client."""

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> Response:
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return Response(
            json.dumps(content, ensure_ascii=False),
            self.status,
            headers=self.headers,
            media_type=MEDIA_TYPE,
        )


def busy(detail: str, *, after_s: int = 1) -> Problem:
    """503: the same request may succeed `after_s` seconds later."""
    return Problem(503, detail, headers={"Retry-After": str(after_s)})


def internal() -> Problem:
    """500: a bug; what happened is in the server's log alone."""
    return Problem(500, "the server failed on this request; its log has more")


SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
