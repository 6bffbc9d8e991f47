"""One real SLURM cluster for all tests of this folder, and the commands that speak to it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "end_to_end"))

from cluster import Cluster
from harness import ROOT
from slurm_jobs import PACKING

from shards.__main__ import main as shards_main


@pytest.fixture(scope="session")
def cluster(slurm: None) -> Iterator[Cluster]:
    """Three nodes of four CPUs and two made-up GPUs; stopped with all its processes at the end."""
    # Short: the names of its sockets have at most 108 characters.
    one = Cluster(Path(tempfile.mkdtemp(prefix="mmsa-slurm-", dir="/tmp")))
    with pytest.MonkeyPatch.context() as patch:
        environment = {
            **one.environment,
            # Jobs get the environment of who submits them.
            "PATH": f"{Path(sys.executable).parent}:{one.environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(ROOT)
        try:
            one.start()
            yield one
        finally:
            one.stop()


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up raw data set of 300 tweets."""
    raw = tmp_path_factory.mktemp("slurm-raw") / "raw"
    assert shards_main(["synthetic", str(raw), "--samples", "300", "--quiet"]) == 0
    return raw


@pytest.fixture(scope="session")
def packed(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same packed on this machine: 173 samples to train, ten steps of 16 an epoch."""
    out = tmp_path_factory.mktemp("slurm-packed") / "shards"
    assert shards_main(["pack", "mvsa-single", str(raw), str(out), *PACKING, "--quiet"]) == 0
    return out
