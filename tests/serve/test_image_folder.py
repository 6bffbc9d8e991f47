"""No path leads out of the folder of POST /test_model, and no answer tells what lies there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmsa
from mmsa.errors import UserError
from mmsa.serve.image_folder import ImageFolder
from tests.serve.tiny_export import picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "pictures"
    (inside / "more").mkdir(parents=True)
    (inside / "a.jpg").write_bytes(picture(0))
    (inside / "more" / "b.jpg").write_bytes(picture(1))
    (inside / "large.jpg").write_bytes(bytes(60_000))
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(2))
    (inside / "link.jpg").symlink_to(secret)
    (inside / "inner-link.jpg").symlink_to("a.jpg")
    (inside / "out").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    return inside


def test_the_answer_is_that_of_prediction(
    client: Callable[..., Any], export: Path, folder: Path
) -> None:
    expected = mmsa.load(export, device="cpu").predict(["what a day"], [picture(1)])
    with client(images=folder) as http:
        sent = {"text": "what a day", "image_path": "more/b.jpg"}
        answer = http.post("/test_model", json=sent)
    assert list(answer.json()["probabilities"].values()) == pytest.approx(
        expected.probabilities[0].tolist(), abs=1e-6
    )


def test_no_path_leads_out(client: Callable[..., Any], folder: Path) -> None:
    outside = [
        *["../secret.jpg", "more/../../secret.jpg", str(folder.parent / "secret.jpg")],
        *["link.jpg", "inner-link.jpg", "out/secret.jpg", "out/pictures/a.jpg", "/etc/passwd"],
        *["", ".", "more", "pipe", "no.jpg", "a.jpg/", "a.jpg\0", "a.jpg/b.jpg", "a" * 5000, "\\"],
    ]
    with client(images=folder, max_body_bytes=50_000) as http:
        for path in outside:
            answer = http.post("/test_model", json={"text": "a", "image_path": path})
            if path == "a.jpg/":  # PurePosixPath drops the slash
                assert answer.status_code == 200
                continue
            assert answer.status_code == 404, path
            assert answer.json()["detail"] == (
                "image_path: there is no such file in the server's folder of pictures"
            )
        large = http.post("/test_model", json={"text": "a", "image_path": "large.jpg"})
        assert large.status_code == 413


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--images .* cannot be opened"):
        ImageFolder(tmp_path / "none", 10)
