"""The routes."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from mmsa.serve.answers import (
    Answer,
    BatchAnswer,
    ModelAnswer,
    StateAnswer,
    body_of,
    body_schemas,
    problems,
)
from mmsa.serve.bodies import Post, Posts, StoredPost
from mmsa.serve.counters import CONTENT_TYPE, Counters
from mmsa.serve.gate import Gate
from mmsa.serve.image_folder import ImageFolder
from mmsa.serve.model import ServedModel
from mmsa.serve.options import Options
from mmsa.serve.page import load_page
from mmsa.serve.problems import Problem, busy, internal
from mmsa.serve.service import Service
from mmsa.serve.training import Training

_PREDICTION = problems(400, 401, 408, 413, 415, 422, 500, 503)
_OTHER = problems(401, 500, 503)
_FACTS = ("step", "dataset", "shards_digest", "protocol", "mixed_precision", "code_version")


def create_app(
    service: Service, options: Options, counters: Counters, training: Training | None = None
) -> Gate:
    """The ASGI application of a service."""
    app = FastAPI(
        title="mmsa",
        description="Sentiment of posts that have a text and an image.",
        version="1",
        docs_url=None,  # its page loads scripts from another server
        redoc_url=None,
        root_path=options.root_path,
    )
    _add_errors(app)
    _add_prediction(app, service)
    if options.images is not None:
        _add_test_model(app, service, ImageFolder(options.images, options.max_body_bytes))
    if training is not None:
        _add_training(app, training)
    _add_page(app)
    _complete_openapi(app)
    paths = {path for route in app.routes if (path := getattr(route, "path", None))}
    gate = Gate(app, options, counters, paths)
    counters.watch(lambda: gate.in_flight, lambda: len(service.batches))
    _add_operation(app, service, options, counters, gate)
    gate.paths |= {"/healthz", "/readyz", "/metrics", "/model"}
    return gate


def _answer(content: Any, status: int = 200) -> Response:
    encoded = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(encoded, status, media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    def problem(request: Request, error: Exception) -> Response:
        if isinstance(error, Problem):
            return error.response()
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return Problem(422, f"{where[:80]}: {first['msg']}"[:200]).response()
        if isinstance(error, HTTPException):
            return Problem(error.status_code, str(error.detail), headers=error.headers).response()
        return internal().response()

    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, problem)


def _add_prediction(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        summary="Predict one post",
        response_model=None,
        responses={200: {"model": Answer}, **_PREDICTION},
        openapi_extra=body_of(Post, form=True),
    )
    async def predict(request: Request, alone: bool = False) -> Response:
        return _answer(await service.predict(request, alone=alone))

    @app.post(
        "/predict/batch",
        summary="Predict several posts",
        response_model=None,
        responses={200: {"model": BatchAnswer}, **_PREDICTION},
        openapi_extra=body_of(Posts),
    )
    async def predict_batch(request: Request, alone: bool = False) -> Response:
        return _answer(await service.predict_batch(request, alone=alone))


def _add_test_model(app: FastAPI, service: Service, folder: ImageFolder) -> None:
    @app.post(
        "/test_model",
        summary="Predict a text with a picture from the server's folder",
        response_model=None,
        responses={200: {"model": Answer}, **_PREDICTION, **problems(404)},
        openapi_extra=body_of(StoredPost),
    )
    async def test_model(request: Request) -> Response:
        return _answer(await service.predict_stored(request, folder.read))


def _add_training(app: FastAPI, training: Training) -> None:
    @app.post(
        "/train_model",
        summary="Start the training that the server was given",
        response_model=None,
        status_code=202,
        responses={202: {"description": "its state"}, **_OTHER, **problems(409)},
    )
    async def train_model(request: Request) -> Response:
        return _answer(await training.start(), 202)

    @app.get(
        "/train_model",
        summary="How far the training is",
        response_model=None,
        responses={200: {"description": "its state"}, **_OTHER},
    )
    async def training_state(request: Request) -> Response:
        return _answer(training.state())


def _add_operation(
    app: FastAPI, service: Service, options: Options, counters: Counters, gate: Gate
) -> None:
    @app.get(
        "/healthz",
        summary="Is the process alive?",
        response_model=None,
        responses={200: {"model": StateAnswer}},
    )
    async def healthz() -> Response:
        return _answer({"status": "ok"})

    @app.get(
        "/readyz",
        summary="Does it take requests?",
        response_model=None,
        responses={200: {"model": StateAnswer}, **problems(503)},
    )
    async def readyz() -> Response:
        if gate.draining:
            raise busy("the server is ending")
        if service.is_full:
            raise busy("the queue is full")
        return _answer({"status": "ready"})

    @app.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=PlainTextResponse,
        response_model=None,
        responses=_OTHER,
    )
    async def metrics() -> Response:
        return Response(counters.text(), headers={"Content-Type": CONTENT_TYPE})

    @app.get(
        "/model",
        summary="The model in service",
        response_model=None,
        responses={200: {"model": ModelAnswer}, **_OTHER},
    )
    async def model() -> Response:
        return _answer(described(service.model, options))


def _add_page(app: FastAPI) -> None:
    page = load_page()

    @app.get("/", include_in_schema=False, response_model=None)
    async def index() -> Response:
        return HTMLResponse(page.html, headers=page.headers)


def _complete_openapi(app: FastAPI) -> None:
    """Add the schemas of the bodies, which the routes parse themselves, to the document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        document.setdefault("components", {}).setdefault("schemas", {}).update(body_schemas())
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def described(model: ServedModel, options: Options) -> dict[str, Any]:
    """The content of `GET /model`: nothing in it is a path."""
    preprocessing = model.export.preprocessing
    return {
        "classes": list(model.label_names),
        "digest": model.digest,
        "reads": list(model.reads),
        "may_lack": list(model.may_lack),
        "calibrated": model.is_calibrated,
        "parameters": model.num_parameters,
        "max_tokens": preprocessing.max_tokens,
        "image_size_px": None if preprocessing.image is None else preprocessing.image.image_size_px,
        "facts": {name: model.export.facts[name] for name in _FACTS if name in model.export.facts},
        "limits": {
            "body_bytes": options.max_body_bytes,
            "pixels": options.max_pixels,
            "characters": options.max_characters,
            "posts": options.max_posts,
            "seconds": options.timeout_s,
        },
    }
