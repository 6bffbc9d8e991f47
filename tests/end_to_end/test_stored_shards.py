"""Two ranks that train from an S3 store end with the same bytes as from the folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from harness import keys_by_step, launched
from moto.server import ThreadedMotoServer
from small_set import IMAGES_ONLY, small_set

from shards.__main__ import main as shards_main


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of moto's S3 server; it does not check signatures."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "the-secret-key",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="tweets")
    yield "s3://tweets/set"
    server.stop()


def test_from_a_store_as_from_a_folder(tmp_path: Path, bucket: str) -> None:
    """With room for two of its windows, and validation in between."""
    shards = small_set(tmp_path / "shards")
    assert shards_main(["push", str(shards), bucket, "--quiet"]) == 0
    assert shards_main(["verify", bucket, "--cache", str(tmp_path / "v"), "--workers", "1"]) == 0
    sizes = sum(file.stat().st_size for file in shards.iterdir())
    settings = [*IMAGES_ONLY, "train.epochs=2", "train.validate_every_steps=3", "run.audit=true"]
    from_folder, from_store = tmp_path / "folder", tmp_path / "store"
    cache = [f"data.cache={tmp_path / 'cache'}", f"data.cache_limit={sizes}"]
    for run, data in (
        (from_folder, [f"data.shards={shards}"]),
        (from_store, [*cache, f"data.shards={bucket}"]),
    ):
        ended = launched("train.py", *settings, *data, f"run.dir={run}")
        assert ended.returncode == 0, ended.stderr
    assert keys_by_step(from_store) == keys_by_step(from_folder)
    name = "best/model.safetensors"
    assert (from_store / name).read_bytes() == (from_folder / name).read_bytes()
    for file in from_store.rglob("*"):
        if file.is_file():
            assert b"the-secret-key" not in file.read_bytes(), file
