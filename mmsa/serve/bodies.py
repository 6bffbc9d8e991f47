"""The body of a request, as bytes -> the posts in it. Runs in a decoding thread."""

from __future__ import annotations

import base64
import binascii
from email.message import Message
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field as FormField
from python_multipart.multipart import File as FormFile
from python_multipart.multipart import FormParser

from mmsa.serve.problems import Problem

JSON, MULTIPART = "application/json", "multipart/form-data"
Model = TypeVar("Model", bound=BaseModel)
_MAX_PARTS = 16  # of a multipart body, in which two have a meaning


class Post(BaseModel):
    """One post. What the model does not read may be left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(None, description="the text of the post")
    image: str | None = Field(
        None,
        description="its picture (JPEG, PNG, GIF, WebP, AVIF, BMP or TIFF) in base64; "
        "a data URL is taken too",
    )


class Posts(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    posts: list[Post] = Field(min_length=1, description="the posts, answered in this order")


class StoredPost(BaseModel):
    """A post whose picture is a file below the folder that the server was given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str | None = Field(None, description="the text of the post")
    image_path: str = Field(description="the picture's path, relative to the server's folder")


class RawPost(BaseModel):
    """A post as bytes; `problem` says why the post cannot be used."""

    text: str | None = None
    image: bytes | None = None
    problem: str | None = None


def one_post(body: bytes, content_type: str) -> RawPost:
    """The post of `POST /predict`. Raises `Problem` where the body is not one."""
    kind, boundary = _kind(content_type)
    if kind == JSON:
        post = as_raw(_parsed(Post, body))
    elif kind == MULTIPART:
        post = _from_form(body, boundary)
    else:
        raise _other_type(content_type, f"{JSON} or {MULTIPART}")
    if post.problem is not None:
        raise Problem(422, post.problem)
    return post


def many_posts(body: bytes, content_type: str, max_posts: int) -> list[RawPost]:
    """The posts of `POST /predict/batch`; one that cannot be used has its `problem`."""
    require_json(content_type)
    found = _parsed(Posts, body).posts
    if len(found) > max_posts:
        raise Problem(413, f"{len(found)} posts; this server takes {max_posts} at a time")
    return [as_raw(post) for post in found]


def stored_post(body: bytes, content_type: str) -> StoredPost:
    """The body of `POST /test_model`."""
    require_json(content_type)
    return _parsed(StoredPost, body)


def require_json(content_type: str) -> None:
    if _kind(content_type)[0] != JSON:
        raise _other_type(content_type, JSON)


def as_raw(post: Post) -> RawPost:
    """`post` with its picture as bytes."""
    if post.image is None:
        return RawPost(text=post.text)
    encoded = post.image
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        return RawPost(text=post.text, image=base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):  # ValueError: a letter outside ASCII
        return RawPost(text=post.text, problem="image: it is not base64")


def _parsed(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        # Places are names of the schema or of the client's own fields; inputs are left out.
        said = first["msg"]
        if first["type"] == "extra_forbidden":
            said = f"there is no such field; expected {' and '.join(model.model_fields)}"
        said = f"{where[:80]}: {said}" if where else said
        raise Problem(400 if first["type"] == "json_invalid" else 422, said[:200]) from None


def _kind(content_type: str) -> tuple[str, str]:
    """(media type, boundary) of a Content-Type header; "" for what it does not have."""
    message = Message()
    message["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = message.get_param("boundary", "")
    named = message.get_content_type() if content_type.strip() else ""
    return named, boundary if isinstance(boundary, str) else ""


def _other_type(content_type: str, expected: str) -> Problem:
    return Problem(415, f"the Content-Type is {content_type[:60]!r}; send {expected}")


def _from_form(body: bytes, boundary: str) -> RawPost:
    """A multipart form with `text` and `image`; an empty field counts as left out."""
    parts: dict[str, bytes] = {}

    def keep(name: bytes | None, value: bytes | None) -> None:
        key = (name or b"").decode("utf-8", "replace")
        if key not in ("text", "image"):
            raise Problem(422, f"{key[:40]}: there is no such field; expected text and image")
        if key in parts:
            raise Problem(422, f"{key}: it is there twice")
        parts[key] = value or b""

    def on_field(field: FormField) -> None:
        keep(field.field_name, field.value)

    def on_file(file: FormFile) -> None:
        file.file_object.seek(0)
        keep(file.field_name, file.file_object.read())
        file.close()

    if not boundary:
        raise Problem(400, "the Content-Type has no boundary")
    ended: list[bool] = []
    config: dict[str, Any] = {
        "MAX_MEMORY_FILE_SIZE": len(body) + 1,  # the body is bounded, and never goes to a disk
        "MAX_FIELDS": _MAX_PARTS,
        "MAX_FIELD_SIZE": len(body) + 1,
    }
    try:
        parser = FormParser(
            MULTIPART, on_field, on_file, lambda: ended.append(True), boundary, config=config
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeError) as error:
        raise Problem(400, f"the multipart body cannot be read ({str(error)[:80]})") from None
    if not ended:
        raise Problem(400, "the multipart body ends before its last boundary")
    if not parts:
        raise Problem(422, "the form has neither a text nor an image")
    return _as_post(parts)


def _as_post(parts: dict[str, bytes]) -> RawPost:
    try:
        text = parts.get("text", b"").decode("utf-8")
    except UnicodeDecodeError as error:
        return RawPost(problem=f"text: it is not UTF-8 (byte {error.start})")
    return RawPost(text=text or None, image=parts.get("image") or None)
