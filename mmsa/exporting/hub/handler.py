"""Hugging Face Inference Endpoints: one instance per endpoint, one call per request.

A request is `{"inputs": POST}` or `{"inputs": [POST, ...]}`. A post is a text, or an object with
`text` and `image` (the bytes of a file in base64), of which the model may read one alone.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

import mmsa


class EndpointHandler:
    """Predicts posts with the model in the directory of this file."""

    def __init__(self, path: str = "") -> None:
        self.model = mmsa.load(path or Path(__file__).parent)

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """All classes of a post as `{"label", "score"}`, the likeliest first; of several posts a
        list of these. A post that cannot be used is `{"error": reason}` in its place."""
        posts = data.get("inputs", data)
        several = isinstance(posts, list)
        answers = [self._answer(post) for post in (posts if several else [posts])]
        return answers if several else answers[0]

    def _answer(self, post: Any) -> Any:
        if isinstance(post, str):
            post = {"text": post}
        if not isinstance(post, dict):
            return {"error": "a post is a text, or an object with text and image"}
        image = post.get("image")
        try:
            content = None if image is None else base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError, TypeError):
            return {"error": "image is not base64"}
        result = self.model.predict([post.get("text")], [content])
        if result.errors[0] is not None:
            return {"error": result.errors[0]}
        scores = zip(result.label_names, result.probabilities[0].tolist(), strict=True)
        ordered = sorted(scores, key=lambda pair: -pair[1])
        return [{"label": label, "score": score} for label, score in ordered]
