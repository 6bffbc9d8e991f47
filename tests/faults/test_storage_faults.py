"""Two ranks train from a server that misbehaves, and end with the bytes of a run from the folder.

Each test is a real launch. The cache has room for half of the set, so that shards are fetched
through both epochs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from full_disk import fill
from harness import keys_by_step
from launches import Launch, checkpoint_steps, launcher
from small_set import small_set
from store_runs import (
    EXPIRED,
    SETTINGS,
    SIZES,
    STEPS,
    WEIGHTS,
    FromFolder,
    Gate,
    ended,
    failed_with,
    for_a_while,
    kill,
    kill_downloader,
    listing,
    pause_for_steps,
    started,
)

from benchmarks.shard_server import Answer, ShardServer, serving


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> FromFolder:
    directory = tmp_path_factory.mktemp("from-folder")
    shards = small_set(directory / "shards", sizes=SIZES)
    run = started(directory / "run", str(shards))
    assert run.wait() == 0, run.output()
    found = FromFolder(shards, keys_by_step(run.run_dir), (run.run_dir / WEIGHTS).read_bytes())
    assert list(found.keys) == list(range(1, STEPS + 1))
    return found


def test_cut_and_other_bytes_kills_and_a_server_that_comes_back(
    expected: FromFolder, tmp_path: Path
) -> None:
    gate = Gate(4, ["other", "cut", 500])
    room = f"data.cache_limit={expected.half}"
    server = ShardServer(expected.shards)
    server.fault = gate
    try:
        launch = started(tmp_path / "run", server.url, room, cache=tmp_path / "cache")
        launch.wait_for_steps(2)  # of the four shards that came
        assert not gate.first
        kill_downloader(launch)  # while its next requests are held
        server.close()
        time.sleep(1.5)
        server = ShardServer(expected.shards, port=server.port)
        server.fault = Gate(8)  # the epoch's other shards
        launch.wait_until(lambda: checkpoint_steps(launch.run_dir)[-1:] >= [8])
        launch.ranks()[1].kill()
        assert launch.wait() == 1
        server.fault = lambda name: None
        ended(started(tmp_path / "run", server.url, room, cache=tmp_path / "cache"))
    finally:
        server.close()
    expected.check(tmp_path / "run")
    assert not list((tmp_path / "cache" / "partial").iterdir())


@pytest.mark.soak
@pytest.mark.parametrize("answer", [500, 503, 429])
def test_a_server_that_refuses_for_a_while(
    expected: FromFolder, tmp_path: Path, answer: int
) -> None:
    with serving(expected.shards) as server:
        server.fault = for_a_while(answer, 8)
        ended(started(tmp_path / "run", server.url, cache=tmp_path / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_bodies_that_stall(expected: FromFolder, tmp_path: Path) -> None:
    """The client gives a connection up after 30 s without a byte, and continues behind its half."""
    stalls = [True, True]
    with serving(expected.shards) as server:
        server.fault = lambda name: (
            "stall" if name.startswith("train-") and stalls and stalls.pop() else None
        )
        ended(started(tmp_path / "run", server.url, cache=tmp_path / "cache"))
        assert not stalls
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_a_name_that_does_not_resolve(expected: FromFolder, tmp_path: Path) -> None:
    launch = started(
        tmp_path / "run", "http://nowhere.invalid/set", "data.timeout_s=10", cache=tmp_path / "c"
    )
    failed_with(launch, "http://nowhere.invalid/set cannot be read as packed shards")


@pytest.mark.soak
def test_a_server_that_stays_away(expected: FromFolder, tmp_path: Path) -> None:
    """After the patience, with the shard; the same command continues where it ended."""
    room = f"data.cache_limit={expected.half}"
    server = ShardServer(expected.shards)
    gate = Gate(6)
    server.fault = gate
    launch = started(
        tmp_path / "run", server.url, room, "data.timeout_s=10", cache=tmp_path / "cache"
    )
    launch.wait_until(lambda: bool(checkpoint_steps(launch.run_dir)))
    server.close()
    failed_with(launch, f"{server.url}/train-")
    with serving(expected.shards, port=server.port):
        ended(started(tmp_path / "run", server.url, room, cache=tmp_path / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_credentials_that_expire(
    expected: FromFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of S3 without the token that it repeats; the same command continues."""
    bucket = tmp_path / "tweets"
    bucket.mkdir()
    (bucket / "set").symlink_to(expected.shards)
    gate, expired = Gate(6), []

    def fault(name: str) -> Answer:
        if name.rstrip("/") == "tweets":
            return 200, listing(expected.shards)
        answer = gate(name.rpartition("/")[2])
        return (400, EXPIRED) if expired and name.endswith(".tar") else answer

    with serving(tmp_path) as server:
        server.fault = fault
        for name, value in {
            "AWS_ENDPOINT_URL": server.url,
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "the-secret-key",
            "AWS_SESSION_TOKEN": "the-secret-token",
            "AWS_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        room = f"data.cache_limit={expected.half}"
        more = ("s3://tweets/set", room)
        launch = Launch(
            tmp_path / "run",
            *[*SETTINGS, f"data.shards={more[0]}", room, f"data.cache={tmp_path / 'cache'}"],
            by=launcher(),
        )
        launch.wait_until(lambda: bool(checkpoint_steps(launch.run_dir)))
        expired.append(True)
        gate.allowed = 99
        failed_with(launch, "ExpiredToken: The provided token has expired.")
        for text in (
            launch.output(),
            launch.own_log(),
            (launch.run_dir / "config.yaml").read_text(),
        ):
            assert "the-secret" not in text
        expired.clear()
        again = Launch(
            tmp_path / "run",
            *[*SETTINGS, f"data.shards={more[0]}", room, f"data.cache={tmp_path / 'cache'}"],
            by=launcher(),
        )
        ended(again)
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_a_shard_that_is_not_there(expected: FromFolder, tmp_path: Path) -> None:
    with serving(expected.shards) as server:
        server.fault = lambda name: 404 if name == "train-00005.tar" else None
        launch = started(tmp_path / "run", server.url, cache=tmp_path / "cache")
        failed_with(launch, "train-00005.tar: it is not there")
        server.fault = lambda name: None
        ended(started(tmp_path / "run", server.url, cache=tmp_path / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_other_bytes_that_stay(expected: FromFolder, tmp_path: Path) -> None:
    with serving(expected.shards) as server:
        server.fault = lambda name: "other" if name == "train-00005.tar" else None
        launch = started(tmp_path / "run", server.url, cache=tmp_path / "cache")
        failed_with(launch, "train-00005.tar has other bytes than the manifest says")
        # Twice ahead of its time, where it ends nothing, and twice when it is needed.
        assert server.requests["GET train-00005.tar"] in (2, 4)
        server.fault = lambda name: None
        ended(started(tmp_path / "run", server.url, cache=tmp_path / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_a_disk_full_of_cache(
    expected: FromFolder, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """It has no room for a window; after room was made, the same command goes on."""
    disk = small_disk("4m")
    tar = (expected.shards / "train-00000.tar").stat().st_size
    filler = fill(disk, leave_bytes=3 * tar // 2)
    with serving(expected.shards) as server:
        launch = started(tmp_path / "run", server.url, "data.timeout_s=10", cache=disk / "cache")
        failed_with(launch, "the disk is full. Make room there")
        filler.unlink()
        ended(started(tmp_path / "run", server.url, cache=disk / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
def test_a_disk_that_holds_half_of_the_set(
    expected: FromFolder, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    """Without a limit: the full disk itself makes room."""
    disk = small_disk("4m")
    fill(disk, leave_bytes=expected.half + (128 << 10))
    with serving(expected.shards) as server:
        ended(started(tmp_path / "run", server.url, cache=disk / "cache"))
    expected.check(tmp_path / "run")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_twenty_kills(expected: FromFolder, tmp_path: Path) -> None:
    """Of the downloader, a rank or all, at random moments."""
    chance = random.Random(7)
    kills: list[str] = []
    settings = f"data.cache_limit={expected.half}", "train.max_steps=24"
    with serving(expected.shards, latency_s=0.05) as server:
        while len(kills) < 20:
            launch = started(tmp_path / "run", server.url, *settings, cache=tmp_path / "cache")
            victim = "downloader"
            while victim == "downloader" and len(kills) < 20 and launch.process.poll() is None:
                pause_for_steps(launch, chance)
                victim = chance.choice(["downloader", "downloader", "rank", "all"])
                if kill(launch, victim, chance):
                    kills.append(victim)
            if launch.process.poll() == 0 and len(kills) < 20:
                expected.check(tmp_path / "run")  # and again, with what is in the cache
                (tmp_path / "run").rename(tmp_path / f"run-{len(kills)}")
        ended(started(tmp_path / "run", server.url, *settings, cache=tmp_path / "cache"))
    expected.check(tmp_path / "run")
    print(kills)


@pytest.mark.soak
def test_two_runs_on_one_cache(expected: FromFolder, tmp_path: Path) -> None:
    """At the same time; each byte is sent once to both."""
    with serving(expected.shards, latency_s=0.02) as server:
        runs = [
            started(tmp_path / f"run-{number}", server.url, cache=tmp_path / "cache")
            for number in range(2)
        ]
        for run in runs:
            ended(run)
        for name, number in server.sent.items():
            assert number == (expected.shards / name).stat().st_size, name
    for run in runs:
        expected.check(run.run_dir)


@pytest.mark.soak
def test_a_cache_of_another_set(expected: FromFolder, tmp_path: Path) -> None:
    """It has the same base names with other bytes, and is as full as the limit allows."""
    other = small_set(tmp_path / "other", sizes=(9, 12, 5, 14))
    cache = tmp_path / "cache"
    with serving(other) as server:
        ended(started(tmp_path / "before", server.url, "train.epochs=1", cache=cache))
    kept = {path.name for path in (cache / "objects").glob("*/*")}
    with serving(expected.shards) as server:
        room = f"data.cache_limit={expected.half}"
        ended(started(tmp_path / "run", server.url, room, cache=cache))
    expected.check(tmp_path / "run")
    left = sum(path.stat().st_size for path in (cache / "objects").glob("*/*"))
    assert left <= expected.half
    assert kept - {path.name for path in (cache / "objects").glob("*/*")}
