"""Runs of two ranks that train from a server of a small set, and what is done to them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from harness import keys_by_step, status
from launches import Launch, launcher
from processes import tree

from benchmarks.shard_server import Answer

SIZES = (16,) * 12  # 24 steps of two epochs, of which each window of two shards has two
STEPS = 24
SETTINGS = [
    *["model.fusion.name=image_only", "train.epochs=2", "train.checkpoint_every_steps=2"],
    *["train.validate_every_steps=12", "run.audit=true"],
]
WEIGHTS = Path("best/model.safetensors")


@dataclass
class FromFolder:
    """The set, and what a run from its folder read and learned."""

    shards: Path
    keys: dict[int, list[str]]
    weights: bytes

    @property
    def half(self) -> int:
        """Bytes."""
        return sum(path.stat().st_size for path in self.shards.iterdir()) // 2

    def check(self, run_dir: Path) -> None:
        """A run that has ended read the same samples at each step and has the same weights."""
        assert status(run_dir)["state"] == "done"
        assert keys_by_step(run_dir) == self.keys
        assert (run_dir / WEIGHTS).read_bytes() == self.weights


def started(run_dir: Path, place: str, *settings: str, cache: Path | None = None) -> Launch:
    more = [*SETTINGS, f"data.shards={place}", *settings]
    if cache is not None:
        more.append(f"data.cache={cache}")
    return Launch(run_dir, *more, by=launcher(), fork=True)


def ended(launch: Launch) -> None:
    assert launch.wait() == 0, launch.output()


def downloader(launch: Launch) -> psutil.Process | None:
    """The process that fetches ahead: the only one that is spawned."""
    for process in tree(launch.process.pid):
        with suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in process.cmdline()):
                return process
    return None


def kill_downloader(launch: Launch) -> None:
    """Kill it, and wait until it has been started again."""
    launch.wait_until(lambda: downloader(launch) is not None)
    victim = downloader(launch)
    assert victim is not None
    victim.kill()
    launch.wait_until(lambda: downloader(launch) not in (None, victim))


@dataclass
class Gate:
    """A fault that lets `allowed` tars pass and holds the requests of others.

    `first` are answers to the first requests, one for each; then tars are served.
    """

    allowed: int
    first: list[Answer] = field(default_factory=list)
    passed: set[str] = field(default_factory=set)

    def __call__(self, name: str) -> Answer:
        if not name.startswith("train-") or not name.endswith(".tar"):
            return None
        deadline = time.monotonic() + 120
        while name not in self.passed and len(self.passed) >= self.allowed:
            if time.monotonic() > deadline:
                return 500
            time.sleep(0.02)
        self.passed.add(name)
        return self.first.pop() if self.first else None


def for_a_while(answer: Answer, seconds: float) -> Callable[[str], Answer]:
    """A fault of every file, from its first request on."""
    since: list[float] = []

    def fault(name: str) -> Answer:
        since.append(time.monotonic())
        return answer if time.monotonic() - since[0] < seconds else None

    return fault


def failed_with(launch: Launch, *words: str) -> None:
    """The launch ended with an error of one line that has these words, and no traceback."""
    assert launch.wait() != 0
    output = launch.output()
    assert "Traceback" not in launch.own_log()
    lines = [line for line in output.splitlines() if "error: " in line]
    assert lines, output
    for word in words:
        assert any(word in line for line in lines), (word, output)


def pause_for_steps(launch: Launch, chance: random.Random) -> None:
    """Wait for some more steps of the launch, or its end, and then for up to 0.3 s."""
    upto = len(launch.steps()) + chance.randint(0, 3)
    while launch.process.poll() is None and len(launch.steps()) < upto:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.3))


def kill(launch: Launch, victim: str, chance: random.Random) -> bool:
    """kill -9 of the victim; whether there was one. After a rank or all, the launch has ended."""
    launch.look()
    if launch.process.poll() is not None:
        return False
    if victim == "all":
        launch.kill()
        return True
    if victim == "rank":
        with suppress(psutil.NoSuchProcess):
            chance.choice(launch.ranks()).kill()
        launch.wait()
        return True
    process = downloader(launch)
    if process is None:
        return False
    with suppress(psutil.NoSuchProcess):
        os.kill(process.pid, signal.SIGKILL)
    return True


EXPIRED = (
    '<?xml version="1.0"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.'
    "</Message><Token-0>the-secret-token</Token-0></Error>"
)


def listing(folder: Path) -> str:
    """What S3 answers to a request for the objects under `set/`."""
    objects = "".join(
        f"<Contents><Key>set/{path.name}</Key><Size>{path.stat().st_size}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for path in sorted(folder.iterdir())
    )
    return (
        '<?xml version="1.0"?><ListBucketResult><Name>tweets</Name><Prefix>set/</Prefix>'
        f"<IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"
    )
