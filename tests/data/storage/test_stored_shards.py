"""Shards read from a store through a node's cache are those of the folder, each byte sent once."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from packed import SIZES, open_split

from benchmarks.shard_server import ShardServer
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.settings import CacheSettings, cache_settings, use_cache
from mmsa.errors import ShardDamage, UserError

EVERYWHERE = [(shard, n) for shard, size in enumerate(SIZES) for n in range(size)]


def opened(url: str) -> SplitReader:
    return open_split(url, load_manifest(url))


def test_the_same_samples_and_each_byte_once(
    tiny: Path, reader: SplitReader, server: ShardServer, cache: Path
) -> None:
    remote = opened(server.url)
    assert remote.identity == reader.identity
    expected = [reader.read(*place) for place in EVERYWHERE]
    assert [remote.read(*place) for place in EVERYWHERE] == expected
    again = pickle.loads(pickle.dumps(opened(server.url)))
    assert [again.read(*place) for place in EVERYWHERE] == expected
    used = {reader.shards.tar(shard) for shard, _ in EVERYWHERE}
    assert {name: n for name, n in server.sent.items() if name.endswith(".tar")} == {
        name: (tiny / name).stat().st_size for name in used
    }
    # The manifest was asked for twice and sent once.
    assert server.requests["GET manifest.json"] == 2
    assert server.sent["manifest.json"] == (tiny / "manifest.json").stat().st_size


def test_a_slow_folder_has_a_cache_too(tiny: Path, reader: SplitReader, cache: Path) -> None:
    cached = open_split(tiny, load_manifest(tiny))
    assert [cached.read(*place) for place in EVERYWHERE] == [
        reader.read(*place) for place in EVERYWHERE
    ]
    assert len(list((cache / "objects").glob("*/*"))) == 4 + 4  # of shards with samples


@pytest.mark.parametrize("fault", [500, 429, "cut", "other"])
def test_what_passes_is_not_noticed(
    reader: SplitReader, server: ShardServer, cache: Path, fault: int | str
) -> None:
    left = {reader.shards.tar(2): 1 if fault == "other" else 3}

    def once(name: str) -> int | str | None:
        left[name] = left.get(name, 0) - 1
        return fault if left[name] >= 0 else None

    server.fault = once
    assert opened(server.url).read(2, 3) == reader.read(2, 3)


def test_a_cut_transfer_continues(reader: SplitReader, server: ShardServer, cache: Path) -> None:
    cuts = [True, True]
    server.fault = lambda name: "cut" if name.endswith(".tar") and cuts and cuts.pop() else None
    opened(server.url).read(2, 3)
    name = reader.shards.tar(2)
    assert server.sent[name] == reader.shards[2].tar_bytes  # none of them twice


def test_a_stalled_transfer_is_taken_up_again(
    reader: SplitReader, server: ShardServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsa.data.storage.sources.STALL_S", 0.3)
    stalls = [True]
    server.fault = lambda name: (
        "stall" if name.endswith(".tar") and stalls and stalls.pop() else None
    )
    assert opened(server.url).read(2, 3) == reader.read(2, 3)


def test_other_bytes_are_fetched_again_and_then_named(server: ShardServer, cache: Path) -> None:
    server.fault = lambda name: "other" if name == "train-00002.tar" else None
    remote = opened(server.url)
    with pytest.raises(ShardDamage, match="other bytes than the manifest says") as damage:
        remote.read(2, 0)
    assert damage.value.shard == "train-00002.tar"
    assert server.requests["GET train-00002.tar"] == 2
    assert not list((cache / "partial").iterdir())
    server.fault = lambda name: None
    assert remote.read(2, 0).key == "tiny-train-7"


def test_a_shard_that_is_not_there(server: ShardServer, cache: Path, tiny: Path) -> None:
    server.fault = lambda name: 404 if name == "train-00002.tar" else None
    with pytest.raises(ShardDamage, match="train-00002.tar: it is not there"):
        opened(server.url).read(2, 0)


def test_a_server_that_does_not_come_back(server: ShardServer, cache: Path) -> None:
    remote = opened(server.url)
    remote.records(2)
    server.fault = lambda name: 503
    with pytest.raises(ShardDamage, match=r"503.* \(for 2 s\)") as damage:
        remote.read(2, 0)
    assert damage.value.shard == "train-00002.tar"


def test_a_name_that_does_not_resolve(cache: Path) -> None:
    use_cache(replace(cache_settings(), patience_s=0.5))
    with pytest.raises(UserError, match=r"nowhere\.invalid/set cannot be read as packed shards"):
        load_manifest("http://nowhere.invalid/set")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:secret@host/set", "has a user name or password"),
        ("https://host/set?token=secret", "often is a credential"),
        ("ftp://host/set", "ftp:// is not supported"),
    ],
)
def test_urls_without_credentials_alone(cache: Path, url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_manifest(url)
    assert "secret" not in str(error.value)


def test_no_folder_but_a_cache_is_used(tiny: Path, server: ShardServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("the only copy")
    before = cache_settings()
    use_cache(CacheSettings(mine))
    try:
        with pytest.raises(UserError, match="not empty and not a cache of mmsa"):
            load_manifest(server.url)
    finally:
        use_cache(before)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_file_that_lost_its_end_is_fetched_again(
    reader: SplitReader, server: ShardServer, cache: Path
) -> None:
    remote = opened(server.url)
    remote.read(2, 3)
    path = remote.files.cache.path(reader.shards.tar_file(2).sha256)  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[:1000])
    assert opened(server.url).read(2, 3) == reader.read(2, 3)


@pytest.mark.parametrize("damage", ["empty", "other byte", "another version wrote it"])
def test_a_cached_manifest_that_the_disk_changed_is_fetched_again(
    server: ShardServer, cache: Path, damage: str
) -> None:
    expected = load_manifest(server.url)
    (cached,), (tag,) = (list((cache / "manifests").glob(f"*.{end}")) for end in ("json", "tag"))
    whole = cached.read_bytes()
    if damage == "empty":
        cached.write_bytes(b"")
    elif damage == "other byte":
        cached.write_bytes(whole.replace(b"train-00000", b"train-00009", 1))
    else:
        tag.write_text(json.dumps({"tag": json.loads(tag.read_text())["tag"]}))
    assert load_manifest(server.url) == expected
    assert cached.read_bytes() == whole
    assert server.sent["manifest.json"] == 2 * len(whole)
    assert load_manifest(server.url) == expected
    assert server.sent["manifest.json"] == 2 * len(whole)


def test_an_index_that_the_disk_changed_is_fetched_again(
    reader: SplitReader, server: ShardServer, cache: Path
) -> None:
    remote = opened(server.url)
    remote.records(2)
    path = remote.files.cache.path(reader.shards.index_file(2).sha256)  # type: ignore[union-attr]
    whole = path.read_bytes()
    changed = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    path.write_bytes(changed)
    assert opened(server.url).read(2, 3) == reader.read(2, 3)
    assert path.read_bytes() == whole
    path.write_bytes(changed)
    remote = opened(server.url)
    server.fault = lambda name: 404
    with pytest.raises(ShardDamage, match="in the cache, and cannot be fetched again") as damage:
        remote.read(2, 3)
    assert str(path) in str(damage.value)


def test_tars_are_checked_before_they_are_fetched(server: ShardServer, cache: Path) -> None:
    remote = opened(server.url)
    remote.check_tars()
    assert not [name for name in server.sent if name.endswith(".tar")]
    server.folder = server.folder.parent  # all gone
    with pytest.raises(ShardDamage, match="cannot be read"):
        remote.check_tars()
