"""The API: its answers are those of `mmsa.load`, and each mistake gets one sentence."""

from __future__ import annotations

import base64
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import mmsa
from mmsa.calibration import Calibration, store_calibration
from mmsa.errors import UserError
from mmsa.serve.model import load_served
from mmsa.serve.options import Options
from tests.serve.tiny_export import CLASSES, TEXTS, picture, post, tiny_export

Client = Callable[..., Any]
ENCODED = base64.b64encode(picture(0)).decode()


def problem(answer: Any, status: int) -> str:
    """The detail of a problem, whose form is checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    content = answer.json()
    assert content["status"] == status
    assert set(content) == {"type", "title", "status", "detail"}
    assert "\n" not in content["detail"]
    assert "Traceback" not in answer.text
    assert os.getcwd() not in answer.text
    return str(content["detail"])


@pytest.mark.parametrize("threads", [1, 2])  # with two, batches are computed at the same time
def test_answers_are_those_of_prediction_in_python(
    client: Client, export: Path, threads: int
) -> None:
    """One by one, sent together and as a batch; the images as base64 and in a form."""
    pictures = [picture(number) for number in range(8)]
    texts = [TEXTS[number % len(TEXTS)] for number in range(8)]
    expected = mmsa.load(export, device="cpu").predict(texts, pictures)
    with client(max_batch=4, threads=threads) as http:
        assert http.service.model.parallel == threads
        requests = [("POST", "/predict", {"json": post(number)}) for number in range(8)]
        forms = [
            ("POST", "/predict", {"data": {"text": text}, "files": {"image": ("x", image)}})
            for text, image in zip(texts, pictures, strict=True)
        ]
        answers = [one.json() for one in http.together(requests + forms)]
        batch = http.post("/predict/batch", json={"posts": [post(number) for number in range(8)]})
    for found in (answers[:8], answers[8:], batch.json()["results"]):
        rows = [[one["probabilities"][name] for name in CLASSES] for one in found]
        assert np.allclose(rows, expected.probabilities, atol=1e-6)
        assert [one["label"] for one in found] == expected.labels
        assert all(one["confidence"] == max(one["probabilities"].values()) for one in found)
    digest = mmsa.load(export, device="cpu").export.weights_sha256
    assert {one["model"] for one in answers} == {digest} == {batch.json()["model"]}
    assert all(one["ms"] > 0 and one["calibrated"] is False for one in answers)


@pytest.mark.parametrize("temperature", [None, 1.5])
def test_probabilities_are_calibrated_where_there_is_a_temperature(
    export: Path, tmp_path: Path, temperature: float | None
) -> None:
    """The export of a training with a small validation split says why it has none."""
    copy = shutil.copytree(export, tmp_path / "export")
    why = None if temperature else "too few samples"
    store_calibration(copy, Calibration(temperature, "val", 100, "0" * 64, 1.0, 1.0, why))
    served = load_served(copy, Options(), "cpu")
    assert served.is_calibrated == (temperature is not None)


def test_each_modality_alone_is_that_of_the_audit(client: Client, export: Path) -> None:
    from mmsa.evaluation.modality_audit.changed_inputs import plain_image

    predictor = mmsa.load(export, device="cpu")
    image = predictor.export.preprocessing.image
    assert image is not None
    red, green, blue = image.mean
    masked = predictor.predict(["what a day"], [plain_image((red, green, blue))])
    with client() as http:
        answer = http.post("/predict?alone=true", json=post(0)).json()
        assert set(answer["alone"]) == {"text", "image"}
        found = [answer["alone"]["text"]["probabilities"][name] for name in CLASSES]
        # The masked image is not packed as a JPEG in the audit, so the last digits may differ.
        assert np.allclose(found, masked.probabilities[0], atol=1e-3)
        assert "alone" not in http.post("/predict", json=post(0)).json()
        assert http.post("/predict?alone=maybe", json=post(0)).status_code == 422


def test_a_model_with_stand_ins_takes_what_a_post_has(client: Client, tmp_path: Path) -> None:
    export = tiny_export(tmp_path / "best", stand_ins=("text", "image"))
    expected = mmsa.load(export, device="cpu").predict(["what a day", None], [None, picture(1)])
    with client(export) as http:
        answers = [
            http.post("/predict?alone=true", json={"text": "what a day"}).json(),
            http.post("/predict", json={"image": post(1)["image"]}).json(),
        ]
        assert problem(http.post("/predict", json={}), 422) == (
            "the post has neither a text nor an image; give one"
        )
        both = http.post("/predict?alone=true", json={**post(1), "text": "what a day"}).json()
    rows = [[one["probabilities"][name] for name in CLASSES] for one in answers]
    assert np.allclose(rows, expected.probabilities, atol=1e-6)
    assert answers[0]["alone"] == {}  # there is nothing to take away
    alone = [both["alone"][name]["probabilities"] for name in ("text", "image")]
    assert np.allclose([list(one.values()) for one in alone], rows, atol=1e-6)


def test_a_text_model_needs_no_image(client: Client, tmp_path: Path) -> None:
    export = tiny_export(tmp_path / "best", fusion={"name": "text_only"})
    with client(export) as http:
        assert http.post("/predict", json={"text": "what a day"}).status_code == 200
        assert problem(http.post("/predict", json={"image": ENCODED}), 422) == (
            "text: it is missing, and this model needs one"
        )
        assert http.get("/model").json()["reads"] == ["text"]


def test_the_model_is_described_without_paths(client: Client, export: Path) -> None:
    with client() as http:
        answer = http.get("/model")
        document = http.get("/openapi.json").json()
    found = answer.json()
    assert found["classes"] == CLASSES
    assert found["reads"] == ["text", "image"]
    assert (found["max_tokens"], found["image_size_px"]) == (12, 32)
    assert found["facts"]["dataset"] == "tiny"
    assert str(export) not in answer.text
    assert {"/predict", "/predict/batch", "/model", "/healthz", "/readyz", "/metrics"} == set(
        document["paths"]
    )
    # Each reference leads somewhere.
    for reference in {line for line in json.dumps(document).split('"') if line.startswith("#/")}:
        at: Any = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def bomb() -> bytes:
    """A PNG of 144 million pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "Invalid JSON"),
        ({"content": b"{}"}, 415, "the Content-Type is ''; send application/json or multipart"),
        ({"json": {"text": 5, "image": ENCODED}}, 422, "text: Input should be a valid string"),
        (
            {"json": {"text": "a", "picture": ""}},
            422,
            "picture: there is no such field; expected text and image",
        ),
        ({"json": {"text": "a", "image": "?"}}, 422, "image: it is not base64"),
        ({"json": {"text": "a", "image": ""}}, 422, "image: empty image file"),
        ({"json": {"text": "a"}}, 422, "image: it is missing, and this model needs one"),
        ({"json": {"text": " ", "image": ENCODED}}, 422, "text: empty text"),
        ({"json": {"text": "a" * 101, "image": ENCODED}}, 413, "text: text of 101 characters is"),
        ({"json": {"text": "a", "image": "YWJj"}}, 422, "image: "),
        ({"json": {"text": "a", "image": ENCODED[:400]}}, 422, "image: truncated image"),
        ({"json": {"text": "a" * 300_000}}, 413, "the body has more than 200,000 bytes"),
        (
            {"json": {"text": "a", "image": base64.b64encode(bomb()).decode()}},
            413,
            "image: picture of 12000x12000 = 144,000,000 pixels is over the limit of",
        ),
        ({"files": {"picture": b"x"}}, 422, "picture: there is no such field; expected text and"),
        (
            {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}},
            400,
            "the Content-Type has no boundary",
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nabc',
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            400,
            "the multipart body ends before its last boundary",
        ),
        (
            {"files": {"text": (None, b"\xff"), "image": picture(0)}},
            422,
            "text: it is not UTF-8 (byte 0)",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(
    client: Client, sent: dict[str, Any], status: int, says: str
) -> None:
    with client(max_body_bytes=200_000, max_characters=100) as http:
        assert problem(http.post("/predict", **sent), status).startswith(says)
        assert http.post("/predict", json=post(0)).status_code == 200


def test_one_bad_post_does_not_spoil_its_batch(client: Client) -> None:
    posts = [post(0), {"text": "a", "image": "?"}, post(1), {"text": "a"}]
    with client(max_posts=4) as http:
        found = http.post("/predict/batch", json={"posts": posts}).json()["results"]
        assert problem(http.post("/predict/batch", json={"posts": posts * 2}), 413) == (
            "8 posts; this server takes 4 at a time"
        )
        assert problem(http.post("/predict/batch", json={"posts": []}), 422).startswith("posts: ")
    assert [one.get("error") for one in found] == [
        *[None, "image: it is not base64"],
        *[None, "image: it is missing, and this model needs one"],
    ]
    assert found[0]["label"] in CLASSES


def test_other_paths_and_methods_are_problems(client: Client) -> None:
    with client() as http:
        assert problem(http.get("/no/such"), 404) == "Not Found"
        assert problem(http.get("/predict"), 405) == "Method Not Allowed"
        assert problem(http.post("/test_model", json={}), 404) == "Not Found"  # off by default
        assert problem(http.post("/train_model"), 404) == "Not Found"


def test_a_token_is_asked_for(client: Client) -> None:
    token = "a-token-of-this-test"
    with client(token=token) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}
        assert http.get("/").status_code == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            for path in ("/model", "/metrics", "/openapi.json"):
                assert "token is missing or wrong" in problem(http.get(path, headers=given), 401)
            answer = http.post("/predict", json=post(0), headers=given)
            assert "token is missing or wrong" in problem(answer, 401)
        right = {"Authorization": f"Bearer {token}"}
        assert http.post("/predict", json=post(0), headers=right).status_code == 200


def test_a_full_queue_says_when_to_return(client: Client) -> None:
    with client(queue=2, max_wait_ms=0) as http:
        answers = http.together([("POST", "/predict", {"json": post(0)})] * 12)
        refused = [one for one in answers if one.status_code == 503]
        assert refused
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        assert sum(one.status_code == 200 for one in answers) == 12 - len(refused) >= 2
        assert http.post("/predict", json=post(0)).status_code == 200  # places are given back
        assert http.service._places == 2
        assert http.service._bytes == 0


def test_open_bodies_are_bounded_together(client: Client) -> None:
    with client(max_bytes_in_flight=2000) as http:
        detail = problem(http.post("/predict", json={"text": "a" * 3000}), 503)
        assert detail == "the requests that are open hold too many bytes; try again later"
        assert http.service._bytes == 0


def test_rows_of_many_requests_are_computed_together(client: Client) -> None:
    with client(max_batch=16, max_wait_ms=2000) as http:
        answers = http.together([("POST", "/predict", {"json": post(n)}) for n in range(16)])
        assert all(one.status_code == 200 for one in answers)
        metrics = http.get("/metrics").text
    assert "mmsa_batch_rows_sum 16.0" in metrics
    count = next(line for line in metrics.splitlines() if line.startswith("mmsa_batch_rows_count"))
    assert float(count.split()[1]) <= 8
    assert 'mmsa_requests_total{path="/predict",status="200"} 16.0' in metrics


def test_weights_that_are_not_finite_are_refused_at_the_start(
    client: Client, export: Path, tmp_path: Path
) -> None:
    broken = tiny_export(tmp_path / "best")
    (broken / "digests.json").unlink()
    facts = json.loads((broken / "export.json").read_text())
    del facts["digests"]
    (broken / "export.json").write_text(json.dumps(facts))
    weights = load_file(broken / "model.safetensors")
    save_file(
        {
            name: one * float("nan") if one.is_floating_point() else one
            for name, one in weights.items()
        },
        broken / "model.safetensors",
    )
    with pytest.raises(UserError, match="not finite"), client(broken):
        pass
