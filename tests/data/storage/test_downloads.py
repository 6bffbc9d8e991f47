"""The downloader of a node: ahead of the readers, within the limit, each byte once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from full_disk import fill
from packed import open_split, packed_set
from streaming import assert_equal, batches_of, real_keys, requests

from benchmarks.shard_server import ShardServer, serving
from mmsa.data.batch_requests import TrainRequests
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.shard_needs import TrainNeeds, _early_bytes, most_bytes_at_once, start_downloads
from mmsa.data.storage.cache import Cache
from mmsa.data.storage.downloader import Downloader, Task, _Work
from mmsa.data.storage.files import CachedFiles
from mmsa.data.storage.settings import CacheSettings, cache_settings, use_cache
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage, UserError
from mmsa.foundation.file_lock import FileLock
from mmsa.process.runtime import World

SHARDS, SAMPLES = 12, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("twelve")
    packed_set(directory, [SAMPLES] * SHARDS)
    return directory


@pytest.fixture
def served(folder: Path) -> Iterator[ShardServer]:
    with serving(folder) as server:
        yield server


def bytes_of_one(folder: Path) -> int:
    """Of the largest shard with its index."""
    return max(
        tar.stat().st_size + tar.with_suffix(".idx").stat().st_size for tar in folder.glob("*.tar")
    )


def source(reader: SplitReader, **more: int | None) -> TrainRequests:
    made = requests(reader, **{"micro_batch_size": 8, "stop_step": 12, **more})
    made.window_shards = 2
    return made


@contextmanager
def downloading(train: TrainRequests, num_workers: int = 1) -> Iterator[Downloader]:
    """A downloader of this process alone; there is no validation."""
    started = start_downloads(train, None, World(), num_workers)
    assert started is not None
    try:
        yield started
    finally:
        started.close()


def keys(train: TrainRequests, pause: Callable[[], object] = lambda: None) -> list[list[str]]:
    found = []
    for request in train():
        pause()
        places = zip(request.shards.tolist(), request.ordinals.tolist(), strict=True)
        found.append([train.reader.read(*place).key for place in places])
    return found


def tar_bytes(folder: Path) -> int:
    return sum(tar.stat().st_size for tar in folder.glob("*.tar"))


def sent_tars(server: ShardServer) -> int:
    return sum(number for name, number in server.sent.items() if name.endswith(".tar"))


def open_with(server: ShardServer, **settings: object) -> SplitReader:
    use_cache(replace(cache_settings(), **{"run": "test", **settings}))  # type: ignore[arg-type]
    return open_split(server.url, load_manifest(server.url))


def test_an_epoch_in_room_for_three_windows(folder: Path, served: ShardServer, cache: Path) -> None:
    expected = keys(source(open_split_in_place(folder)))
    reader = open_with(served, limit_bytes=6 * bytes_of_one(folder))
    largest = 0

    def look() -> None:
        nonlocal largest
        held = 0
        for path in objects(cache):
            with suppress(FileNotFoundError):  # removed between the listing and this look
                held += path.stat().st_size
        largest = max(largest, held)

    with downloading(source(reader)):
        assert keys(source(reader), look) == expected
    assert largest <= 6 * bytes_of_one(folder)
    assert sent_tars(served) == tar_bytes(folder)


@pytest.mark.parametrize("limited", [False, True])
def test_samples_before_their_shards_change_no_batch(
    folder: Path,
    served: ShardServer,
    cache: Path,
    tokenizer: TextTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    limited: bool,
) -> None:
    monkeypatch.setattr("mmsa.data.shard_needs._EARLY_SHARE", 0.5)
    expected = list(batches_of(source(open_split_in_place(folder)), tokenizer))
    served.latency_s = 0.02
    reader = open_with(served, limit_bytes=6 * bytes_of_one(folder) if limited else None)
    train = source(reader)
    with downloading(train):
        assert_equal(list(batches_of(train, tokenizer)), expected)
    allowed = _early_bytes(train, num_workers=1)
    early = reader._early
    assert early is not None
    assert early.left_bytes < allowed
    assert sent_tars(served) <= tar_bytes(folder) + allowed


def test_what_is_sent_twice_is_a_hundredth_of_an_epoch_of_all_readers(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    reader = open_with(served)
    whole = source(reader, stop_step=None)  # two epochs of 12 steps
    assert _early_bytes(whole, num_workers=0) == tar_bytes(folder) // 100
    assert _early_bytes(replace(whole, start_step=18), num_workers=0) == tar_bytes(folder) // 200
    two_ranks = source(reader, world_size=2, micro_batch_size=4, stop_step=None)
    assert _early_bytes(two_ranks, num_workers=3) == tar_bytes(folder) // 100 // 6


def open_split_in_place(folder: Path) -> SplitReader:
    before = cache_settings()
    use_cache(CacheSettings())
    try:
        return open_split(folder, load_manifest(folder))
    finally:
        use_cache(before)


def objects(cache: Path) -> list[Path]:
    return list((cache / "objects").glob("*/*"))


def test_a_resume_fetches_only_what_is_to_come(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    reader = open_with(served)
    rest = replace(source(reader), start_step=8)
    needed = {file.name for need in TrainNeeds(rest)() for file in need.files}
    with downloading(rest):
        assert len(keys(rest)) == 4
    assert {name for name in served.sent if name != "manifest.json"} == needed
    assert len(needed) == 2 * 4


def asked_while_held(
    served: ShardServer,
    train: TrainRequests,
    held: Callable[[str], bool],
    until: Callable[[set[str]], object],
) -> set[str]:
    """The names that the downloader asks for while no file that is `held` is answered: those until
    `until` says of them that they are enough, and what follows within half a second."""
    go_on = threading.Event()

    def fault(name: str) -> None:
        if held(name):
            go_on.wait(60)

    def asked() -> set[str]:
        names = {name.removeprefix("GET ") for name in list(served.requests) if "GET " in name}
        return names - {"manifest.json"}

    served.fault = fault
    with downloading(train):
        deadline = time.monotonic() + 60
        while not until(asked()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)  # in which the downloader looks for more to fetch several times
        found = asked()
        go_on.set()
        assert len(keys(train)) == 12
    return found


def needs_of(train: TrainRequests) -> list[set[str]]:
    """Of each window: the names of its files."""
    windows = [{file.name for file in need.files} for need in TrainNeeds(train)()]
    return [names for names in windows if len(names) == 4]  # not those of a step between two


def test_nothing_takes_bandwidth_from_the_window_that_readers_wait_for(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    train = source(open_with(served))
    window = needs_of(train)[0]
    asked = asked_while_held(
        served, train, lambda name: name in window and name.endswith(".tar"), window.issubset
    )
    assert asked == window


def test_nothing_takes_bandwidth_from_the_next_window(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    train = source(open_with(served))
    first, second, *_ = needs_of(train)
    asked = asked_while_held(
        served,
        train,
        lambda name: name not in first and name.endswith(".tar"),
        (first | second).issubset,
    )
    assert asked == first | second


def test_a_single_connection_gets_another_beside_it(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    train = source(open_with(served))
    first, second, *_ = needs_of(train)
    held = min(name for name in first if name.endswith(".tar"))
    later = {name for name in second if name.endswith(".tar")}
    asked = asked_while_held(served, train, lambda name: name in {held, *later}, later.intersection)
    assert first < asked
    assert len(asked & later) == 1
    assert asked < first | second


def test_a_reader_reports_other_shards_at_once_and_the_same_ones_seldom(
    served: ShardServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("mmsa.data.storage.files.time.monotonic", lambda: clock)
    reader = open_with(served)
    report = cache / "runs" / "test" / "at-0-0"
    report.parent.mkdir(parents=True)
    said = []
    for step, shards, passed_s in [
        (0, (), 0.0),
        (0, (0, 1), 0.0),  # other shards
        (1, (0, 1), 0.1),
        (2, (0, 1), 0.15),  # a quarter of a second after the last report
        (3, (0, 1), 0.05),
        (4, (2, 3), 0.05),  # other shards
        (5, (), 0.0),  # the end
    ]:
        clock += passed_s
        reader.at_step("0-0", step, shards)
        said.append(int(report.read_text()))
    assert said == [0, 0, 0, 2, 2, 4, 5]


def test_a_limit_below_a_window_is_refused(folder: Path, served: ShardServer, cache: Path) -> None:
    reader = open_with(served, limit_bytes=bytes_of_one(folder))
    with (
        pytest.raises(UserError, match="smaller than what a window and the validation split"),
        downloading(source(reader)),
    ):
        pass


def uneven(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir()
    packed_set(folder, sizes)
    return folder


@pytest.mark.parametrize("more", [{}, {"start_step": 13}, {"stop_step": 17}, {"groups": 2}])
@pytest.mark.parametrize(("num_ranks", "num_workers"), [(1, 0), (1, 1), (1, 3), (2, 0), (2, 1)])
def test_the_room_for_all_readers_is_that_of_the_widest_step_of_all_epochs(
    tmp_path: Path, more: dict[str, int], num_ranks: int, num_workers: int
) -> None:
    folder = uneven(tmp_path / "uneven", [5, 40, 8, 0, 16, 3, 24, 9, 30, 11, 7, 21])
    reader = open_split(folder, load_manifest(folder))
    ranks = {"micro_batch_size": 8 // num_ranks, "world_size": num_ranks}
    train = source(reader, **{**ranks, "stop_step": 88, **more})
    per_step = {
        step: set(train.shards_of_step(train.order_of(step // 21), step, num_ranks))
        for step in range(train.start_step, train.stop_step)
    }
    lead = 2 * num_workers + (num_ranks - 1)
    sizes = reader.shards.bytes_with_index()
    widest = max(
        sum(int(sizes[shard]) for shard in set().union(*map(per_step.get, steps)))
        for step in per_step
        for steps in [[s for s in range(step, step + lead + 1) if s in per_step]]
    )
    found = most_bytes_at_once(train, num_ranks, num_workers)
    if num_ranks == 1 and num_workers == 0 and train.plan.groups == 1:
        assert found == widest
    assert widest <= found <= 1.2 * widest  # a shard may count twice


def test_epochs_of_several_loader_processes_in_the_least_room(
    tmp_path: Path, cache: Path, tokenizer: TextTokenizer
) -> None:
    folder = uneven(tmp_path / "uneven", [5, 40, 8, 16, 3, 24, 9, 30, 11, 7, 21])
    expected = real_keys(list(batches_of(small_steps(open_split_in_place(folder)), tokenizer)))
    with serving(folder) as server:
        least = most_bytes_at_once(small_steps(open_with(server)), 1, 3)
        with (
            pytest.raises(UserError, match=rf"{least - 1} bytes is smaller .* {least} bytes"),
            downloading(small_steps(open_with(server, limit_bytes=least - 1)), 3),
        ):
            pass
        train = small_steps(open_with(server, limit_bytes=least, patience_s=5.0))
        with downloading(train, 3):
            assert real_keys(list(batches_of(train, tokenizer, workers=3))) == expected


def small_steps(reader: SplitReader) -> TrainRequests:
    """Three epochs in windows of one shard."""
    train = source(reader, global_batch_size=4, micro_batch_size=4, stop_step=3 * 43)
    train.window_shards = 1
    return train


def test_a_later_shard_does_not_take_the_room_of_an_earlier_one(
    tmp_path: Path, cache: Path
) -> None:
    folder = uneven(tmp_path / "uneven", [24, 8] * 6)
    with serving(folder) as server:
        train = source(open_with(server), stop_step=None)
        train.window_shards = 1
        tars = [need.files[-1] for need in TrainNeeds(train)()]
        sizes = [tar.size or 0 for tar in tars]
        large = max(sizes) * 3 // 4
        first = next(  # a large one now, then one that has no room, then one that would fit
            n
            for n in range(len(sizes))
            if sizes[n] > large and sizes[n + 1] > large and sizes[n + 2] < large
        )
        room = sizes[first] + sizes[first + 2] + 8192  # and their indexes
        assert room < sizes[first] + sizes[first + 1]
        steps = [need.step for need in TrainNeeds(train)()]
        reader = open_with(server, limit_bytes=room)
        train = replace(train, reader=reader, start_step=steps[first])
        with downloading(train, 0):
            deadline = time.monotonic() + 60
            while not reader.files.cache.path(tars[first].sha256).exists():  # type: ignore[union-attr]
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(1.0)
        assert not server.sent[tars[first + 1].name]
        assert not server.sent[tars[first + 2].name]


def test_a_disk_for_a_few_windows_needs_no_limit_and_nothing_is_fetched_again(
    folder: Path, served: ShardServer, cache: Path, small_disk: Callable[[str], Path]
) -> None:
    expected = keys(source(open_split_in_place(folder)))
    disk = small_disk("2m")
    reader = open_with(served, directory=disk / "cache")
    fill(disk, leave_bytes=5 * bytes_of_one(folder))
    train = source(reader)
    first, second, *_ = needs_of(train)

    def wait() -> None:
        """At the first batch: what fits is there, and the downloader looks for more."""
        if not waited:
            deadline = time.monotonic() + 60
            while not (first | second).issubset(served.sent):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(3.0)  # longer than a failure is waited for
            waited.append(sent_tars(served))

    waited: list[int] = []
    with downloading(train):
        assert keys(train, wait) == expected
    assert waited[0] <= 5 * bytes_of_one(folder)


def test_a_reader_reports_its_step_on_a_full_disk(
    served: ShardServer, cache: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("1m")
    reader = open_with(served, directory=disk / "cache")
    run = disk / "cache" / "runs" / "test"
    run.mkdir()
    reader.at_step("0-0", 1, (0, 1))
    fill(disk)
    reader.at_step("0-0", 23, (2, 3))
    assert int((run / "at-0-0").read_text()) == 23


def test_a_failure_is_told_to_who_waits(served: ShardServer, cache: Path) -> None:
    served.fault = lambda name: 404 if name.endswith(".tar") else None
    reader = open_with(served, patience_s=60.0)
    with downloading(source(reader)), pytest.raises(ShardDamage, match="it is not there"):
        keys(source(reader))


@pytest.mark.parametrize("status", [404, 503])
def test_what_failed_ahead_is_tried_again_when_it_is_needed(
    folder: Path, served: ShardServer, cache: Path, status: int
) -> None:
    expected = keys(source(open_split_in_place(folder)))
    train = source(open_with(served, patience_s=0.2))
    first, second, *_ = needs_of(train)
    ahead = {name for name in second - first if name.endswith(".tar")}
    is_away = True
    served.fault = lambda name: status if is_away and name in ahead else None

    def come_back() -> None:
        nonlocal is_away
        deadline = time.monotonic() + 60
        while not all(served.requests[f"GET {name}"] for name in ahead):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1.0)  # longer than a transfer is patient
        is_away = False

    with downloading(train):
        assert keys(train, lambda: come_back() if is_away else None) == expected


def test_a_problem_of_the_cache_is_told_in_its_own_words(
    served: ShardServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsa.data.storage.cache._LOCK_WAIT_S", 0.1)
    files = open_with(served).files
    assert isinstance(files, CachedFiles)
    train = source(open_with(served))
    work = _Work(Task(files, TrainNeeds(train), (), ()), cache)
    work._advance(TrainNeeds(train)(), 0)
    with FileLock(cache / "locks" / "cache"), ThreadPoolExecutor(1) as pool:
        work._submit_in_turn(pool)
    work._collect()
    assert work.failed
    for said in work.failed.values():
        assert said.startswith("another process holds")


def test_a_killed_downloader_starts_again_and_nothing_is_lost(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    expected = keys(source(open_split_in_place(folder)))
    served.latency_s = 0.05
    reader = open_with(served)

    def kill() -> None:
        with suppress(ProcessLookupError):  # it has just been started again, or not yet
            os.kill(started.pid or 0, signal.SIGKILL)

    with downloading(source(reader)) as started:
        assert keys(source(reader), kill) == expected
    assert sent_tars(served) <= 1.5 * tar_bytes(folder)


def test_the_downloader_ends_with_its_parent(served: ShardServer, cache: Path) -> None:
    reader = open_with(served)
    with downloading(source(reader)) as started:
        process = psutil.Process(started.pid)
    process.wait(10)


def test_nothing_that_is_open_or_in_sight_goes(
    folder: Path, served: ShardServer, cache: Path
) -> None:
    reader = open_with(served, run=None, limit_bytes=2 * bytes_of_one(folder))
    reader.read(0, 0)
    held = reader.shards.tar_file(0)
    with pytest.raises(ShardDamage, match="has no room in the cache"):
        [reader.read(shard, 0) for shard in range(1, 4)]
    assert reader.files.cache.path(held.sha256).exists()  # type: ignore[union-attr]
    reader.at_step("0-0", 1)  # closes them
    assert reader.read(5, 0).key == "tiny-train-40"
    assert not reader.files.cache.path(held.sha256).exists()  # type: ignore[union-attr]


def test_what_is_left_of_killed_transfers_goes(served: ShardServer, cache: Path) -> None:
    Cache(cache).prepare()
    left = cache / "partial" / f"{'0' * 64}.host.1.abcdef"
    left.write_bytes(b"half")
    mine = cache / "partial" / "notes.txt"
    mine.write_bytes(b"not ours")
    Cache(cache).prepare()
    assert not left.exists()
    assert mine.exists()
