"""`python -m launch doctor` on a real cluster, with faults made on one node: it names each one.

Faults are made in the node's own mount namespace, so that the other node is sound.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from full_disk import fill
from harness import ROOT
from transformers import BertConfig, BertModel

from mmsa.data.text import word_tokenizer
from tests.conftest import need

# Long, and its faults would reach the tests after it if it were cut short: `make soak`.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.soak]

AHEAD_S = 30
STOPPED_S, RUNNING_S = 0.1, 0.05


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text encoder with its tokenizer, in a directory."""
    directory = tmp_path_factory.mktemp("doctor") / "encoder"
    tokenizer = word_tokenizer(["a few words"], 3, 8)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(
        BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=8, **sizes)
    ).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


class OneNode:
    """The file systems of one node, changed for this node alone."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.pid = int((cluster.directory / f"{name}.pid").read_text())
        self._mounted: list[Path] = []

    def mount(self, place: Path, *options: str) -> None:
        self._run("mount", *options, str(place))
        self._mounted.append(place)

    def path(self, place: Path) -> Path:
        """`place` as the node sees it."""
        return Path(f"/proc/{self.pid}/root{place}")

    def restore(self) -> None:
        for place in reversed(self._mounted):
            with suppress(subprocess.CalledProcessError):  # the node may be gone
                self._run("umount", "--lazy", str(place))

    def _run(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--target={self.pid}", "--mount", *command], check=True)


@pytest.fixture
def faulty(cluster: Cluster, tmp_path: Path) -> Iterator[OneNode]:
    """node2; what is mounted on it is removed before the directories of the test are."""
    node = OneNode(cluster, "node2")
    yield node
    node.restore()


@contextmanager
def slowed(node: OneNode, step: str) -> Iterator[None]:
    """Stop the processes of a step on a node most of the time, as a limit of its CPU would."""
    over = threading.Event()

    def processes() -> list[psutil.Process]:
        found = []
        with suppress(psutil.Error):
            for one in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if "launch.doctor.node" in one.cmdline() and step in one.cmdline():
                        found.append(one)
        return found

    def pulse() -> None:
        stopped: list[psutil.Process] = []
        while not over.wait(RUNNING_S if stopped else 1.0):
            stopped = processes()
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for one in stopped:
                    with suppress(psutil.Error):
                        one.send_signal(number)
                if number == signal.SIGSTOP and stopped:
                    time.sleep(STOPPED_S)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def faketime() -> Iterator[str]:
    """The library of Debian's package faketime, which makes a process see another time."""
    found = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
    need("faketime", bool(found))
    before = _shared_by_faketime()
    yield found[0]
    for path in _shared_by_faketime() - before:  # it leaves them behind
        path.unlink(missing_ok=True)


def _shared_by_faketime() -> set[Path]:
    return set(Path("/dev/shm").glob("*faketime_*"))


def _ahead_of_time(folder: Path, faketime: str) -> Path:
    """A prefix of commands: on node2 the step that compares clocks sees a later time.

    No other step, because `time.sleep` fails under this library with real monotonic clocks.
    """
    script = folder / "prefix"
    variables = f"LD_PRELOAD={faketime} FAKETIME=+{AHEAD_S} FAKETIME_DONT_FAKE_MONOTONIC=1"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$SLURMD_NODENAME $4" = "node2 tcp" ]; then exec env {variables} "$@"; fi\n'
        'exec "$@"\n'
    )
    script.chmod(0o755)
    return script


def test_every_fault_of_a_node_is_named(
    cluster: Cluster, packed: Path, encoder: Path, faulty: OneNode, faketime: str, tmp_path: Path
) -> None:
    empty, runs, metadata = tmp_path / "empty", tmp_path / "runs", tmp_path / "METADATA"
    empty.mkdir()
    runs.mkdir()
    site = tmp_path / "site.yaml"
    site.write_text(f"container: {_ahead_of_time(tmp_path, faketime)}\n")
    installed = Path(str(distribution("timm").locate_file(""))) / next(
        str(file) for file in distribution("timm").files or () if file.name == "METADATA"
    )
    text = installed.read_text()
    version = distribution("timm").version
    metadata.write_text(text.replace(f"\nVersion: {version}\n", "\nVersion: 0.0.1\n"))

    faulty.mount(installed, "--bind", str(metadata))
    faulty.mount(packed, "--bind", str(empty))
    faulty.mount(encoder, "--bind", str(empty))
    faulty.mount(runs, "-t", "tmpfs", "-o", "size=8m", "tmpfs")
    fill(faulty.path(runs), leave_bytes=4096)
    with socket.create_server(("", 0)) as taken, slowed(faulty, "compute"):
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "launch", "doctor", "--nodes", "2", "--json"]
        settings = [f"data.shards={packed}", f"run.dir={runs}/first", "data.num_workers=1"]
        settings += [f"model.text_encoder.name={encoder}", "model.fusion.name=text_only"]
        settings += ["data.max_tokens=8", "train.mixed_precision=no", "train.epochs=1"]
        done = subprocess.run(
            [
                *command,
                *["--port", str(port), "--timeout", "500", "--site", str(site), "--"],
                *["launch/runs/full_finetune.yaml", *settings],
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2, done.stderr
    said = json.loads(done.stdout)
    assert said["nodes"] == ["node1", "node2"]
    found = {
        (one["check"], tuple(one["nodes"]), one["level"]): one["found"] for one in said["findings"]
    }
    on_node2 = ("node2",)
    assert found["versions", on_node2, "error"] == f"{version} on node1; 0.0.1 on node2"
    assert found["port", ("node1",), "error"] == "Address already in use"
    assert found["clocks", on_node2, "warning"].startswith(("+29.", "+30."))
    assert "No space left on device" in found["disks", on_node2, "error"]
    assert "manifest.json" in found["shards", on_node2, "error"]
    assert f"tokenizer: {encoder}" in found["weights", on_node2, "error"]
    assert "under the median" in found["stragglers", on_node2, "warning"]
    # The nodes of the test cluster have loopback addresses, which connect only on one machine.
    assert "node2 is 127.0.0.1" in found["names", ("node1",), "warning"]
    for check in ("versions", "clocks", "disks", "shards", "weights"):
        assert not any(key[:2] == (check, ("node1",)) for key in found), found
    assert said["steps"]["gloo"]["node2"]["world"] == 2
    assert said["steps"]["tcp"]["node1"]["peers"]["node2"]["rtt_s"] > 0
    assert said["forecast"]["expected_per_s"] > 0
    assert {one["docs"] for one in said["findings"]} <= _sections()


def _sections() -> set[str]:
    """Every section of docs/doctor.md, as findings refer to it."""
    lines = (ROOT / "docs" / "doctor.md").read_text().splitlines()
    return {f"docs/doctor.md#{line[3:]}" for line in lines if line.startswith("## ")}
