"""`python -m mmsa serve ORG/NAME`: a model of the hub, fetched once and served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import mmsa
from tests.exporting.fake_hub import FakeHub, Repository
from tests.serve.conftest import Server, until
from tests.serve.tiny_export import CLASSES, TEXTS, picture, post


@pytest.fixture
def hub(export: Path) -> Iterator[FakeHub]:
    """A hub on this machine with the export, and a file that nothing may fetch."""
    served = FakeHub()
    names = [path for path in export.rglob("*") if path.is_file()]
    files = {str(path.relative_to(export)): path.read_bytes() for path in names}
    served.repositories["acme/mood"] = Repository()
    served.repositories["acme/mood"].add("first", {**files, "pytorch_model.bin": b"never"})
    yield served
    served.close()


def test_a_model_is_served_by_its_name_on_a_hub(
    server: Callable[..., Server], hub: FakeHub, export: Path, tmp_path: Path
) -> None:
    environment = {
        **{"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")},
        **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"},
    }
    running = server("acme/mood", "--reload-s", "0.05", **environment)
    asked = [path.partition("/resolve/")[2].partition("/")[2] for _, path in hub.requests]
    assert "model.safetensors" in asked
    assert "pytorch_model.bin" not in asked
    expected = mmsa.load(export, device="cpu").predict([TEXTS[1]], [picture(1)])
    hub.requests.clear()
    with httpx.Client(base_url=running.url, timeout=60) as http:
        facts = http.get("/model")
        answer = http.post("/predict", json=post(1)).json()
        # Long enough for the server to look for a newer export of a run, which this is not.
        until(lambda: "POST /predict 200" in "".join(running.lines))
    rows = [answer["probabilities"][name] for name in CLASSES]
    assert np.allclose(rows, expected.probabilities[0], atol=1e-6)
    digest = mmsa.load(export, device="cpu").export.weights_sha256
    assert answer["model"] == digest == facts.json()["digest"]
    assert str(tmp_path) not in facts.text
    code, log = running.end()
    assert code == 0
    assert hub.requests == []
    assert "Traceback" not in log
