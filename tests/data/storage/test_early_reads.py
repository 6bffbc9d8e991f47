"""The first samples of a run come from the store itself, while their shards are on their way."""

from __future__ import annotations

import pickle
import re
import threading
import time
from pathlib import Path

import pytest
from packed import SIZES, open_split

from benchmarks.shard_server import ShardServer
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.early_reads import EarlyReads
from mmsa.data.storage.sources import StoreError
from mmsa.errors import ShardDamage

# Four samples of two shards that have several.
FIRST = [(2, 3), (0, 1), (2, 0), (0, 2)]
EVERYWHERE = [(shard, n) for shard, size in enumerate(SIZES) for n in range(size)]


@pytest.fixture
def remote(server: ShardServer, cache: Path) -> SplitReader:
    """A reader of the server's set that has the indexes and may read a megabyte early."""
    made = open_split(server.url, load_manifest(server.url))
    for shard in range(len(SIZES)):
        made.records(shard)
    made.read_early(1 << 20)
    return pickle.loads(pickle.dumps(made))  # as a loader process gets it


def left(reader: SplitReader) -> int:
    early = reader._early
    assert isinstance(early, EarlyReads)
    return early.left_bytes


def sent_tars(server: ShardServer) -> int:
    return sum(number for name, number in server.sent.items() if name.endswith(".tar"))


def lengths(reader: SplitReader, places: list[tuple[int, int]]) -> int:
    return sum(int(reader.records(shard)[n]["length"]) for shard, n in places)


def test_the_first_samples_come_without_their_shards(
    reader: SplitReader, remote: SplitReader, server: ShardServer, cache: Path
) -> None:
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    assert sent_tars(server) == lengths(reader, FIRST) == (1 << 20) - left(remote)
    remote.read(2, 3)  # brings its shard
    before = sent_tars(server)
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    assert sent_tars(server) == before + lengths(reader, [(0, 1), (0, 2)])


def test_one_byte_less_than_a_batch_is_nothing(
    reader: SplitReader, remote: SplitReader, server: ShardServer
) -> None:
    """A batch that has to wait for one of its shards gains nothing by the other samples."""
    remote.read_early(lengths(reader, FIRST) - 1)
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    used = {reader.shards.tar(shard) for shard, _ in FIRST}
    assert sent_tars(server) == sum((server.folder / name).stat().st_size for name in used)
    assert left(remote) == 0


@pytest.mark.parametrize("fault", [404, 503, "cut", "other"])
def test_what_goes_wrong_is_left_to_the_whole_shard(
    reader: SplitReader, remote: SplitReader, server: ShardServer, fault: int | str
) -> None:
    """One answer after another: only the ranges are hit, then the transfers are as they should."""
    server.fault = lambda name: fault if name.endswith(".tar") and left(remote) else None
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    assert left(remote) == 0


def test_a_shard_with_other_bytes_is_still_named(remote: SplitReader, server: ShardServer) -> None:
    """Its samples were right when they were read early."""
    assert len(remote.read_all(FIRST)) == 4
    server.fault = lambda name: "other" if name.endswith(".tar") else None
    remote.read_early(0)
    with pytest.raises(ShardDamage, match="has other bytes than the manifest says"):
        remote.read_all(FIRST)


def test_a_server_that_stalls_is_given_up(
    reader: SplitReader,
    remote: SplitReader,
    server: ShardServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmsa.data.storage.early_reads._PATIENCE_S", 0.3)
    server.fault = lambda name: "stall" if name.endswith(".tar") and left(remote) else None
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    assert left(remote) == 0


def test_answers_that_nobody_waits_for_say_nothing(
    remote: SplitReader, server: ShardServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """One range is refused, and the others come when they have been given up."""
    first, answered = threading.Lock(), threading.Semaphore(0)

    def fault(name: str) -> int | None:
        if first.acquire(blocking=False):
            return 404
        time.sleep(0.2)
        answered.release()
        return None

    server.fault = fault
    early = remote._early
    assert early is not None
    store = early.files.store
    tar = remote.shards.tar(2)
    with pytest.raises(StoreError, match=re.escape(tar)):
        store.read_ranges([(tar, 512 * n, 512) for n in range(4)], timeout_s=60)
    for _ in range(3):
        assert answered.acquire(timeout=60)
    time.sleep(0.2)  # until the client has them
    assert capfd.readouterr().err == ""
    assert store.read_ranges([(tar, 0, 512)], timeout_s=60) == [
        (server.folder / tar).read_bytes()[:512]
    ]


def test_a_slow_folder(tiny: Path, reader: SplitReader, cache: Path) -> None:
    remote = open_split(tiny, load_manifest(tiny))
    remote.read_early(1 << 20)
    assert remote.read_all(FIRST) == [reader.read(*place) for place in FIRST]
    assert not [path for path in (cache / "objects").glob("*/*") if path.stat().st_size > 5000]
    assert remote.read_all(EVERYWHERE) == [reader.read(*place) for place in EVERYWHERE]
