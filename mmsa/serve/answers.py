"""The answers of the API, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from mmsa.serve.bodies import JSON, MULTIPART, Post, Posts, StoredPost
from mmsa.serve.problems import MEDIA_TYPE, SCHEMA


class ScoresAnswer(BaseModel):
    label: str = Field(description="the most probable class")
    confidence: float = Field(description="its probability")
    probabilities: dict[str, float] = Field(description="of each class; they add up to 1")


class Answer(ScoresAnswer):
    calibrated: bool = Field(description="whether the export has a temperature, which was used")
    model: str = Field(description="SHA-256 of the weights")
    ms: float = Field(description="milliseconds from the whole body to the answer")
    alone: dict[str, ScoresAnswer] | None = Field(
        None, description="with ?alone=true: what the text and the image say by themselves"
    )


class BatchAnswer(BaseModel):
    results: list[dict[str, Any]] = Field(
        description="for each post its label, confidence and probabilities, or an error"
    )
    calibrated: bool
    model: str
    ms: float


class ModelAnswer(BaseModel):
    classes: list[str]
    digest: str = Field(description="SHA-256 of the weights")
    reads: list[str] = Field(description="what a post consists of: text, image")
    may_lack: list[str] = Field(description="which of them a post may lack")
    calibrated: bool
    parameters: int
    max_tokens: int | None = Field(description="longer texts are cut; null: it reads no text")
    image_size_px: int | None = Field(description="side of the square that the encoder sees")
    facts: dict[str, Any] = Field(description="of its training: data set, protocol, step, code")
    limits: dict[str, float] = Field(description="of this server")


class StateAnswer(BaseModel):
    status: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, for its `responses`."""
    content = {MEDIA_TYPE: {"schema": SCHEMA}}
    return {status: {"description": "a problem", "content": content} for status in statuses}


def body_of(model: type[BaseModel], *, form: bool = False) -> dict[str, Any]:
    """The body of a route that parses it itself, for its `openapi_extra`."""
    content: dict[str, Any] = {JSON: {"schema": {"$ref": _reference(model.__name__)}}}
    if form:
        fields = {
            "text": {"type": "string"},
            "image": {"type": "string", "format": "binary"},
        }
        content[MULTIPART] = {"schema": {"type": "object", "properties": fields}}
    return {"requestBody": {"required": True, "content": content}}


def body_schemas() -> dict[str, Any]:
    """The schemas that `body_of` refers to."""
    schemas = {}
    for model in (Post, Posts, StoredPost):
        schema = model.model_json_schema(ref_template=_reference("{model}"))
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    return schemas


def _reference(name: str) -> str:
    return f"#/components/schemas/{name}"
