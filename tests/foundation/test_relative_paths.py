"""A relative path that is not found from the directory in which a command was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsa.config import load_config
from mmsa.data.manifest import load_manifest
from mmsa.errors import UserError


@pytest.fixture
def below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, two levels below one that has `data/shards` and `runs/a.yaml`."""
    (tmp_path / "data" / "shards").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.yaml").write_text("{}")
    directory = tmp_path / "notebooks" / "mine"
    directory.mkdir(parents=True)
    monkeypatch.chdir(directory)
    return directory


def test_shards_that_are_elsewhere(below: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load_manifest("data/shards")
    found = f"the current directory, {below}; there is one at {tmp_path}/data/shards). Make one"
    assert found in str(refused.value)
    with pytest.raises(UserError, match=rf"starts from the current directory, {below}\)\. Make"):
        load_manifest("data/nowhere")
    with pytest.raises(UserError, match=r"has no manifest.json\. Make one"):
        load_manifest(tmp_path / "data" / "shards")


def test_configurations_that_are_elsewhere(below: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is one at {tmp_path}/runs/a.yaml"):
        load_config("runs/a.yaml")
    with pytest.raises(UserError, match=r"there is one at .*/launch/runs/demo.yaml"):
        load_config("launch/runs/demo.yaml")
