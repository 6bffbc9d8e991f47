"""Two ranks that train from an S3 store end with the same bytes as from the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import keys_by_step, launched
from s3_server import bucket
from small_set import IMAGES_ONLY, small_set

from evaluate import main as evaluate_main
from mmsa.data.storage.settings import cache_settings, use_cache
from shards.__main__ import main as shards_main


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    before = cache_settings()
    with bucket(monkeypatch) as made:
        yield made
    use_cache(before)  # the evaluation in this process took that of the run


def test_from_a_store_as_from_a_folder(tmp_path: Path, url: str) -> None:
    """With room for two of its windows, and validation in between."""
    shards = small_set(tmp_path / "shards")
    assert shards_main(["push", str(shards), url, "--quiet"]) == 0
    sizes = sum(file.stat().st_size for file in shards.iterdir())
    settings = [*IMAGES_ONLY, "train.epochs=2", "train.validate_every_steps=3", "run.audit=true"]
    from_folder, from_store = tmp_path / "folder", tmp_path / "store"
    cache = [f"data.cache={tmp_path / 'cache'}", f"data.cache_limit={sizes}"]
    for run, data in (
        (from_folder, [f"data.shards={shards}"]),
        (from_store, [*cache, f"data.shards={url}"]),
    ):
        ended = launched("train.py", *settings, *data, f"run.dir={run}")
        assert ended.returncode == 0, ended.stderr
    assert keys_by_step(from_store) == keys_by_step(from_folder)
    name = "best/model.safetensors"
    assert (from_store / name).read_bytes() == (from_folder / name).read_bytes()
    scores = []
    for run, place in ((from_folder, str(shards)), (from_store, url)):
        out = tmp_path / f"report-{run.name}"
        options = ["--split", "val", "--num-workers", "0", "--out", str(out)]
        assert evaluate_main([str(run), "--shards", place, *options]) == 0
        scores.append({**json.loads((out / "metrics.json").read_text()), "identity": None})
    assert scores[0] == scores[1]
    for file in from_store.rglob("*"):
        if file.is_file():
            assert b"the-secret-key" not in file.read_bytes(), file
