"""Whatever is sent: an answer of the documented form, no 5xx, and no memory or place is kept."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.conftest import need
from tests.serve.tiny_export import post

BOUNDARY = "x"


def fuzzed(draw: random.Random) -> dict[str, Any]:
    """A request's body and type: a valid one, of which some bytes are changed, cut or repeated."""
    if draw.random() < 0.5:
        content_type = "application/json"
        body = json.dumps(post(draw.randrange(8))).encode()
    else:
        content_type = f"multipart/form-data; boundary={BOUNDARY}"
        image = bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
        body = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nwhat a day\r\n'
        body += b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body += image + b"\r\n--x--\r\n"
    changed = bytearray(body)
    for _ in range(draw.choice([0, 1, 1, 2, 8])):
        at = draw.randrange(len(changed) or 1)
        kind = draw.randrange(4)
        if kind == 0 and changed:
            changed[at % len(changed)] = draw.randrange(256)
        elif kind == 1:
            del changed[at : at + draw.randrange(40)]
        elif kind == 2:
            changed[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(40)))
        else:
            del changed[at:]
    kinds = [content_type] * 12 + [
        "",
        "text/plain",
        "multipart/form-data",
        "application/json;;\xe4",
    ]
    return {
        "content": bytes(changed),
        "headers": {b"content-type": draw.choice(kinds).encode("latin-1")},
    }


def check_bodies(client: Callable[..., Any], count: int) -> None:
    draw = random.Random(0)
    with client() as http:
        for start in range(0, count, 50):
            size = min(50, count - start)
            requests = [
                ("POST", draw.choice(["/predict", "/predict", "/predict/batch"]), fuzzed(draw))
                for _ in range(size)
            ]
            for answer in http.together(requests):
                assert answer.status_code < 500, answer.text
                assert (answer.status_code == 200) == ("detail" not in answer.json())
        assert http.post("/predict", json=post(0)).status_code == 200
        assert (http.service._bytes, http.service._places) == (0, http.service.options.queue)
        assert len(http.service.batches) == 0


def test_fuzzed_bodies_never_make_a_server_error(client: Callable[..., Any]) -> None:
    check_bodies(client, 300)


@pytest.mark.soak
def test_ten_thousand_fuzzed_bodies(client: Callable[..., Any]) -> None:
    check_bodies(client, 10_000)


def check_document(client: Callable[..., Any], examples: int) -> None:
    need("schemathesis", importlib.util.find_spec("schemathesis") is not None)
    import schemathesis

    with client() as http:
        run_cases(schemathesis.openapi.from_asgi("/openapi.json", http.gate), examples)


def run_cases(schema: Any, examples: int) -> None:
    """schemathesis: requests made from the OpenAPI document `schema`, valid and not; so many for
    each operation."""
    from schemathesis.checks import CHECKS, not_a_server_error

    checks = [
        not_a_server_error,
        CHECKS.get_one("response_schema_conformance"),
        CHECKS.get_one("content_type_conformance"),
    ]
    for result in schema.get_all_operations():
        _run(result.ok().as_strategy(), checks, examples)


def _run(strategy: Any, checks: list[Any], examples: int) -> None:
    from hypothesis import given

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def each(case: Any) -> None:
        case.call_and_validate(checks=checks)

    each()


def test_the_openapi_document_holds(client: Callable[..., Any]) -> None:
    check_document(client, 8)


@pytest.mark.soak
def test_the_openapi_document_holds_for_many(client: Callable[..., Any]) -> None:
    check_document(client, 500)
