"""An export with its shards and a report: what is handed on."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from evaluate import main as evaluate_main
from mmsa.data.decoding.packed_form import image_as_packed
from shards.packing.tars import PackedSample
from tests.conftest import need
from tests.exporting.raw_images import raw_image
from tests.exports import write_tiny_export
from tests.packed import sample, seal, write_split


def _packed(folder: Path, split: str, count: int) -> list[PackedSample]:
    found = []
    for number in range(count):
        raw = raw_image(folder / f"{split}-{number}.png", number)
        jpeg, _, _ = image_as_packed(raw, short_side_px=64, quality=90)
        lacks = {3: "text", 5: "image"}.get(number, "")
        one = sample(number, split=split, lacks=lacks)
        found.append(one if lacks == "image" else replace(one, image=jpeg))
    return found


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`export`, which may lack a text or an image, `shards` (val, test), and the report of test."""
    folder = tmp_path_factory.mktemp("handed-on")
    shards = folder / "shards"
    shards.mkdir()
    seal(
        shards,
        {name: write_split(shards, name, [_packed(folder, name, 30)]) for name in ("val", "test")},
    )
    write_tiny_export(
        folder / "export",
        model={"stand_ins": ["text", "image"]},
        data={"shards": str(shards), "num_workers": 0},
        eval={"batch_size": 8},
    )
    assert evaluate_main([str(folder / "export"), "--no-page", "--no-floors"]) == 0
    return folder


@pytest.fixture(scope="session")
def onnx() -> None:
    """The packages of the extra `mmsa[onnx]`; tests that use them are skipped without."""
    names = ("onnx", "onnxruntime", "onnxscript")
    need("onnx", all(importlib.util.find_spec(name) is not None for name in names))
