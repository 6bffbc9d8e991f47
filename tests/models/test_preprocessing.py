"""The numbers between a packed sample and a model, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsa.errors import UserError
from mmsa.preprocessing import ImagePreprocessing, Preprocessing, read_preprocessing


def test_another_size_scales_the_short_side_alike() -> None:
    brought = ImagePreprocessing(image_size_px=224, resize_px=256)
    assert brought.at_size(None) == brought
    smaller = brought.at_size(64)
    assert (smaller.image_size_px, smaller.resize_px) == (64, 73)  # 256 x 64 / 224 = 73.14


def test_the_file_reads_back_what_was_written(tmp_path: Path) -> None:
    image = ImagePreprocessing(image_size_px=64, resize_px=72, interpolation="bicubic")
    whole = Preprocessing(image=image, image_view="whole", max_tokens=32)
    (tmp_path / "preprocessing.json").write_text(whole.to_json(), encoding="utf-8")
    assert read_preprocessing(tmp_path) == whole
    assert json.loads(whole.to_json()) == {
        "image": {
            "image_size_px": 64,
            "resize_px": 72,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "interpolation": "bicubic",
        },
        "image_view": "whole",
        "packed_mode": "short_side",
        "packed_normalize": [],
        "packed_short_side_px": 256,
        "packed_quality": 90,
        "max_tokens": 32,
    }


def test_what_a_newer_version_added_is_written_where_it_is_needed(tmp_path: Path) -> None:
    image = ImagePreprocessing(channels="BGR", squeezes=True, interpolation="nearest")
    new = Preprocessing(image=image, max_tokens=32, truncation_side="left")
    (tmp_path / "preprocessing.json").write_text(new.to_json(), encoding="utf-8")
    assert read_preprocessing(tmp_path) == new
    content = json.loads(new.to_json())
    assert (content["truncation_side"], content["image"]["channels"]) == ("left", "BGR")
    # An export of before means what it meant.
    old = '{"image": {"image_size_px": 32, "resize_px": 36}, "max_tokens": 32}'
    (tmp_path / "preprocessing.json").write_text(old, encoding="utf-8")
    read = read_preprocessing(tmp_path)
    assert read.truncation_side == "right"
    assert read.image == ImagePreprocessing(image_size_px=32, resize_px=36)
    assert (read.image.channels, read.image.squeezes) == ("RGB", False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("no json", "does not contain preprocessing settings: its content"),
        ('{"image": {"mean": [1, 2]}}', "preprocessing settings: image.mean"),
        ('{"image_sise_px": 3}', "image_sise_px: Extra inputs are not permitted"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "preprocessing.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_preprocessing(tmp_path)
