"""`prepare.py` of an ONNX directory beside packing: texts alike, images nearly."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmsa.data.decoding.packed_form import text_as_packed
from mmsa.data.decoding.raw_input import raw_view
from mmsa.data.text import word_tokenizer
from mmsa.exporting.onnx.example import prepare_source
from mmsa.preprocessing import ImagePreprocessing, Preprocessing

TEXTS = ["what a day", "  See https://t.co/x1 by @some_one\nnow ", "a", "b " * 40]


def prepared(folder: Path, read: Preprocessing, may_lack: tuple[str, ...] = ()) -> dict[str, Any]:
    """The names of `prepare.py` for an export with these settings."""
    facts: dict[str, Any] = {}
    if read.max_tokens is not None:
        tokenizer = word_tokenizer(["what a day http @user see by now b"], 40, read.max_tokens)
        (folder / "tokenizer.json").write_text(tokenizer.backend_json)
        facts["text"] = {"pad_id": tokenizer.pad_id, "empty_ids": tokenizer.empty_ids}
    if read.image is not None:
        facts["image"] = {**read.model_dump(), **read.image.model_dump()}
    (folder / "preprocessing.json").write_text(json.dumps(facts))
    export: Any = SimpleNamespace(preprocessing=read, may_lack=may_lack)
    names: dict[str, Any] = {"__file__": str(folder / "prepare.py")}
    exec(prepare_source(export), names)
    return names


def photo(path: Path, mode: str, size: tuple[int, int], orientation: int) -> Path:
    coarse = np.random.default_rng(1).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


IMAGE = ImagePreprocessing(image_size_px=32, resize_px=36)
SETTINGS = [
    Preprocessing(image=IMAGE, packed_short_side_px=40),
    Preprocessing(image=IMAGE, packed_short_side_px=40, image_view="whole"),
    Preprocessing(image=IMAGE, packed_short_side_px=48, packed_mode="square"),
    Preprocessing(image=IMAGE, packed_short_side_px=None, packed_mode="original"),
    Preprocessing(
        image=ImagePreprocessing(
            image_size_px=32, resize_px=40, squeezes=True, interpolation="bicubic"
        ),
        image_view="whole",
        packed_short_side_px=40,
    ),
]


@pytest.mark.parametrize("read", SETTINGS, ids=["crop", "whole", "square", "original", "squeezed"])
@pytest.mark.parametrize(
    ("name", "mode", "size", "orientation"),
    [
        ("a.jpg", "RGB", (90, 70), 1),
        ("turned.jpg", "RGB", (61, 120), 6),
        ("large.jpg", "RGB", (700, 500), 1),  # decoded at a fraction of its size
        ("grey.jpg", "L", (50, 45), 3),
        ("small.png", "RGB", (30, 20), 1),
        ("clear.png", "RGBA", (80, 60), 1),
    ],
)
def test_an_image_is_seen_nearly_as_in_evaluation(
    read: Preprocessing, name: str, mode: str, size: tuple[int, int], orientation: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = photo(tmp_path / name, mode, size, orientation)
    expected = raw_view(path.read_bytes(), read).numpy().astype(int)
    found = prepared(tmp_path, read)["view"](path).astype(int)
    assert found.shape == expected.shape == (3, 32, 32)
    apart = np.abs(found - expected)
    assert apart.mean() < 2
    assert apart.max() < 30


def test_texts_get_the_ids_of_training(tmp_path: Path) -> None:
    read = Preprocessing(max_tokens=12, packed_normalize=("urls", "mentions", "whitespace"))
    ours = word_tokenizer(["what a day http @user see by now b"], 40, 12)
    ids, mask = ours([text_as_packed(text, read.packed_normalize) for text in TEXTS])
    found = prepared(tmp_path, read)["inputs"](TEXTS, [None] * 4)
    assert list(found) == ["input_ids", "attention_mask"]
    assert found["input_ids"].tolist() == ids.tolist()
    assert found["attention_mask"].tolist() == mask.tolist()


def test_what_is_missing_is_said_to_the_graph(tmp_path: Path) -> None:
    read = Preprocessing(image=IMAGE, packed_short_side_px=40, max_tokens=12)
    path = photo(tmp_path / "a.jpg", "RGB", (90, 70), 1)
    names = prepared(tmp_path, read, ("text", "image"))
    found = names["inputs"](["what a day", None], [None, path])
    assert found["images"].shape == (2, 3, 32, 32)
    assert found["images"][0].max() == 0
    assert found["text_present"].tolist() == [True, False]
    assert found["image_present"].tolist() == [False, True]
