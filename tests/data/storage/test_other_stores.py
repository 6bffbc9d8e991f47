"""The hub by a stand-in of its endpoints, and the ranges of a web server that others wrote."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from packed import open_split

from benchmarks.shard_server import ShardServer, serving
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.store import Store
from mmsa.errors import UserError
from tests.conftest import need

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardServer]:
    """`/datasets/me/set/resolve/main` and the listing of a repository's files."""
    files = tmp_path / "hub/datasets/me/set/resolve/main/packed"
    shutil.copytree(tiny, files)
    listing = tmp_path / "hub/api/datasets/me/set/tree/main/packed"
    listing.parent.mkdir(parents=True)
    listing.write_text(
        json.dumps(
            [
                {
                    "type": "file",
                    "oid": "0" * 40,
                    "path": f"packed/{one.name}",
                    "size": one.stat().st_size,
                }
                for one in files.iterdir()
            ]
        )
    )
    with serving(tmp_path / "hub") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def test_a_set_on_the_hub(
    tiny: Path, reader: SplitReader, hub: ShardServer, server: ShardServer, cache: Path
) -> None:
    """Large files are redirected to another host, which must not see the token."""

    def redirect(name: str) -> str | None:
        return f"{server.url}/{name.rpartition('/')[2]}" if name.endswith(".tar") else None

    hub.fault = redirect
    url = "hf://datasets/me/set/packed"
    remote = open_split(url, load_manifest(url))
    remote.check_tars()
    assert remote.read(2, 3) == reader.read(2, 3)
    assert Store(url).sizes() == {one.name: one.stat().st_size for one in tiny.iterdir()}
    sent = dict(hub.authorizations)
    assert sent["datasets/me/set/resolve/main/packed/manifest.json"] == "Bearer hf_secret"
    assert server.sent["train-00002.tar"] == (tiny / "train-00002.tar").stat().st_size
    assert {token for _, token in server.authorizations} == {None}


def test_a_place_that_the_hub_cannot_have(cache: Path) -> None:
    with pytest.raises(UserError, match="must be hf://datasets/ORG/NAME"):
        load_manifest("hf://datasets/me")


@pytest.fixture
def nginx(tiny: Path, tmp_path: Path) -> Iterator[str]:
    need("nginx", NGINX is not None)
    assert NGINX is not None
    with serving(tiny) as free:
        port = free.port  # free again at once
    (tmp_path / "nginx.conf").write_text(
        f"""
        daemon off; pid {tmp_path}/pid; error_log {tmp_path}/errors; worker_processes 1;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
            fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u;
            scgi_temp_path {tmp_path}/s;
            server {{ listen 127.0.0.1:{port}; root {tiny}; }}
        }}
        """
    )
    process = subprocess.Popen([NGINX, "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)])
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url + "/manifest.json").close()
            break
        except urllib.error.URLError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait()


def test_ranges_of_nginx(tiny: Path, reader: SplitReader, nginx: str, cache: Path) -> None:
    remote = open_split(nginx, load_manifest(nginx))
    assert load_manifest(nginx) == load_manifest(tiny)  # the second time by its entity tag
    assert remote.read(2, 3) == reader.read(2, 3)
    whole = (tiny / "train-00002.tar").read_bytes()
    assert b"".join(Store(nginx).stream("train-00002.tar", 5000)) == whole[5000:]
