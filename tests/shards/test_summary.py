"""The table of a packed set at 80 columns, whatever its classes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mmsa.data.manifest import Manifest, load_manifest
from shards.reports.summary import print_summary

EMOTIONS = [
    *("anger", "anticipation", "disgust", "fear"),
    *("joy", "sadness", "surprise", "trust"),
]


def with_classes(manifest: Manifest, names: list[str], number: int) -> Manifest:
    splits = {
        name: split.model_copy(update={"classes": dict.fromkeys(names, number)})
        for name, split in manifest.splits.items()
    }
    return manifest.model_copy(update={"classes": tuple(names), "splits": splits})


def shown(manifest: Manifest) -> str:
    screen = io.StringIO()
    print_summary(manifest, console=Console(file=screen, width=80, highlight=False))
    return screen.getvalue()


@pytest.mark.parametrize("number", [7, 1_234_567])
@pytest.mark.parametrize(
    "names",
    [
        ["negative", "neutral", "positive"],
        EMOTIONS,
        [f"class number {n}" for n in range(30)],
    ],
)
def test_names_of_splits_and_classes_are_legible(
    small_packed: Path, names: list[str], number: int
) -> None:
    text = shown(with_classes(load_manifest(small_packed), names, number))
    for word in ("train", "val", "test", "shards", "MB", *names):
        assert word in text, word
    assert "\u2026" not in text
    assert text.count(f"{number:,}") >= 3 * len(names)
    table = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(table) > 6
    assert max(len(line) for line in table if "largest: " not in line) <= 80


def test_very_many_and_very_long_classes(small_packed: Path) -> None:
    manifest = load_manifest(small_packed)
    text = shown(with_classes(manifest, [f"c{n}" for n in range(1000)], 1))
    assert len(text.splitlines()) < 80
    assert "960 smaller classes" in text
    text = shown(with_classes(manifest, ["x" * 300, "short"], 1_234_567))
    assert text.count("1,234,567") >= 6
    assert "short" in text
