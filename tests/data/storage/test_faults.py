"""What can go wrong between a store and a node's disk, with a real server and real processes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from full_disk import fill
from packed import SIZES, open_split

from benchmarks.shard_server import ShardServer, serving
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.cache import Cache
from mmsa.data.storage.settings import cache_settings, use_cache
from mmsa.data.storage.sources import words_of
from mmsa.errors import ShardDamage, UserError

EVERYWHERE = [(shard, n) for shard, size in enumerate(SIZES) for n in range(size)]
READS_ALL = """
import sys
from pathlib import Path
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.cache import Cache
from mmsa.data.storage.settings import CacheSettings, use_cache
from mmsa.labels import class_map
use_cache(CacheSettings(Path(sys.argv[2]), patience_s=20))
manifest = load_manifest(sys.argv[1])
reader = SplitReader(sys.argv[1], manifest, "train", class_map(manifest.classes, None))
print(*[reader.read(*place).key for place in reader.places()])
"""


def opened(url: str) -> SplitReader:
    return open_split(url, load_manifest(url))


def reading(url: str, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", READS_ALL, url, str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_server_that_dies_and_comes_back(tiny: Path, reader: SplitReader, cache: Path) -> None:
    use_cache(replace(cache_settings(), patience_s=30.0))
    with serving(tiny) as first:
        remote = opened(first.url)
        port = first.port
    again: list[ShardServer] = []
    timer = threading.Timer(1.5, lambda: again.append(ShardServer(tiny, port=port)))
    timer.start()
    try:
        assert remote.read(2, 3) == reader.read(2, 3)
    finally:
        timer.join()
        again[0].close()


def test_processes_killed_at_random_leave_a_right_cache(
    tiny: Path, reader: SplitReader, server: ShardServer, cache: Path
) -> None:
    """Two at a time on one cache, killed at random moments; then one reads all."""
    server.latency_s = 0.02
    chance = random.Random(3)
    for _ in range(3):
        pair = [reading(server.url, cache) for _ in range(2)]
        deadline = time.monotonic() + 30
        while not server.sent and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        for process in pair:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        for path in (cache / "objects").glob("*/*"):
            assert path.name in digests(tiny)[path.read_bytes()]
    expected = [reader.read(*place) for place in EVERYWHERE]
    assert [opened(server.url).read(*place) for place in EVERYWHERE] == expected
    assert not list((cache / "partial").iterdir())


def digests(folder: Path) -> dict[bytes, list[str]]:
    found: dict[bytes, list[str]] = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        found.setdefault(content, []).append(hashlib.sha256(content).hexdigest())
    return found


def test_two_processes_on_one_cache_fetch_each_byte_once(
    tiny: Path, server: ShardServer, cache: Path
) -> None:
    server.latency_s = 0.02
    pair = [reading(server.url, cache) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in pair]
    assert [out.split() for out, _ in said] == 2 * [[f"tiny-train-{n}" for n in range(25)]], said
    for name, number in server.sent.items():
        assert number == (tiny / name).stat().st_size, name


def test_a_full_disk_evicts_then_ends_and_goes_on_after_room_was_made(
    server: ShardServer, small_disk: Callable[[str], Path], cache: Path
) -> None:
    disk = small_disk("1m")
    use_cache(replace(cache_settings(), directory=disk / "cache", patience_s=1.0))
    remote = opened(server.url)
    remote.read(0, 0)
    remote.at_step("0-0", 0)  # closes it
    filler = fill(disk, leave_bytes=8192)
    assert remote.read(3, 0).key == "tiny-train-19"  # in the room of the first
    with pytest.raises(ShardDamage, match="the disk is full. Make room there") as damage:
        remote.read(2, 0)
    assert damage.value.shard == "train-00002.tar"
    filler.unlink()
    assert remote.read(2, 0).key == "tiny-train-7"


def test_processes_that_wait_for_a_slow_manifest_end_with_the_words_of_the_store(
    server: ShardServer, cache: Path
) -> None:
    """One asks while the others wait for it, longer than they are patient."""
    use_cache(replace(cache_settings(), patience_s=0.5))
    Cache(cache).prepare()

    def slow(name: str) -> int:
        time.sleep(2.0)
        return 503

    server.fault = slow
    said: list[str] = []

    def load() -> None:
        try:
            load_manifest(server.url)
        except UserError as error:
            said.append(str(error))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 3
    assert all("cannot be read as packed shards" in words and "503" in words for words in said)


def use_all_inodes(disk: Path, number: int) -> None:
    with suppress(OSError):
        for name in range(number):
            (disk / str(name)).touch()
    assert os.statvfs(disk).f_ffree == 0


def test_a_cache_that_takes_no_new_file_is_named(
    server: ShardServer, small_disk: Callable[[str], Path], cache: Path
) -> None:
    disk = small_disk("1m,nr_inodes=60")
    use_cache(replace(cache_settings(), directory=disk / "cache"))
    remote = opened(server.url)
    remote.records(2)
    use_all_inodes(disk, 60)
    with pytest.raises(ShardDamage) as damage:
        remote.read(2, 0)
    assert str(damage.value) == (
        f"{server.url}/train-00002.tar cannot be written to the cache {disk}/cache: the disk is "
        "full. Make room there or name another folder by data.cache; the same command continues"
    )
    for number in range(10):
        (disk / str(number)).unlink()
    assert remote.read(2, 0).key == "tiny-train-7"


def test_a_file_in_the_cache_that_cannot_be_opened_is_named(
    server: ShardServer, cache: Path
) -> None:
    remote = opened(server.url)
    remote.records(2)
    path = remote.files.cache.path(remote.shards.tar_file(2).sha256)  # type: ignore[union-attr]
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    with pytest.raises(ShardDamage, match="cannot be opened in the cache") as damage:
        remote.read(2, 0)
    assert str(path) in str(damage.value)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_not_taken_end_at_once(
    server: ShardServer, cache: Path, status: int
) -> None:
    use_cache(replace(cache_settings(), patience_s=600.0))
    server.fault = lambda name: status
    with pytest.raises(UserError, match=str(status)):
        load_manifest(server.url)
    assert server.requests["GET manifest.json"] == 1


def test_the_words_of_a_store_hold_no_secret() -> None:
    """The answer of S3 to an expired token repeats the token; signed addresses have a signature."""
    expired = (
        "Generic S3 error: Error performing GET https://s3/b/x?X-Amz-Signature=SECRET in 20ms, "
        "after 0 retries - Server returned non-2xx status code: 400 Bad Request: <?xml "
        'version="1.0"?><Error><Code>ExpiredToken</Code><Message>The provided token has expired.'
        "</Message><Token-0>SECRET</Token-0></Error>\n\nDebug source:\nSECRET"
    )
    assert words_of(ValueError(expired)) == "ExpiredToken: The provided token has expired."
    address = "error sending request for url (https://me:SECRET@host/x?sig=SECRET)"
    assert words_of(ValueError(address)) == "error sending request for url (https://host/x)"
