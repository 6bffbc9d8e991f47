"""Sets in a store: uploaded whole or not at all, and read by the same commands as a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from packed import packed_set
from s3_server import bucket

from mmsa.data.manifest import load_manifest, write_manifest
from mmsa.data.storage.settings import CacheSettings, cache_settings, use_cache
from mmsa.data.storage.sources import StoreError
from mmsa.data.storage.store import Store
from mmsa.errors import UserError
from shards.__main__ import main
from shards.push import push


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    before = cache_settings()
    use_cache(CacheSettings(tmp_path / "cache", patience_s=5))
    with bucket(monkeypatch) as made:
        yield made
    use_cache(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    packed_set(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_a_set_is_uploaded_once_and_checked(
    tiny: Path, url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["push", str(tiny), url, "--quiet"]) == 0
    assert load_manifest(url) == load_manifest(tiny)
    assert Store(url).sizes() == {file.name: file.stat().st_size for file in tiny.iterdir()}
    assert push(tiny, url, quiet=True) == 0
    capsys.readouterr()
    # The made-up images say no size in their json: the same faults in both places.
    cache, said = ["--cache", str(tmp_path / "cache")], []
    for place in (str(tiny), url):
        assert main(["verify", place, *cache, "--workers", "1", "--quiet"]) == 1
        said.append(capsys.readouterr().out.splitlines()[:-1])
    assert said[0] == said[1]
    assert len(said[0]) == 25
    found = []
    for place in (str(tiny), url):
        assert main(["info", place, "--json", *cache]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


def test_what_a_store_lost_after_it_was_cached_is_a_fault(
    tiny: Path, url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    push(tiny, url, quiet=True)
    command = ["verify", url, "--cache", str(tmp_path / "cache"), "--workers", "1", "--quiet"]
    main(command)
    before = capsys.readouterr().out.splitlines()
    assert len(list((tmp_path / "cache" / "objects").glob("*/*"))) == 2 * 5
    store = Store(url)
    store.delete("train-00000.tar", "train-00003.idx")
    content = bytearray((tiny / "train-00002.tar").read_bytes())
    content[700] ^= 1
    store.put("train-00002.tar", bytes(content))
    assert main(command) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line not in before]
    assert "train-00000.tar: it is not there" in said[0]
    assert "train-00002.tar has other bytes than the manifest says" in said[1]
    assert "train-00003.idx: it is not there" in said[2]


def test_what_a_store_changed_is_a_fault(
    tiny: Path, url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    push(tiny, url, quiet=True)
    client = boto3.client("s3", region_name="us-east-1")
    content = bytearray((tiny / "train-00002.tar").read_bytes())
    content[700] ^= 1
    client.put_object(Bucket="tweets", Key="set/train-00002.tar", Body=bytes(content))
    client.put_object(Bucket="tweets", Key="set/other.tar", Body=b"")
    cache = ["--cache", str(tmp_path / "cache")]
    assert main(["verify", url, *cache, "--workers", "1", "--quiet"]) == 1
    told = capsys.readouterr().out
    assert "train-00002.tar has other bytes than the manifest says" in told
    assert "other.tar is not in manifest.json" in told


def interrupt_after(
    num_files: int, directory: Path, url: str, monkeypatch: pytest.MonkeyPatch, **options: bool
) -> None:
    """Push, and be interrupted after so many files of the set."""
    put, left = Store.put, [num_files + 2]  # and the marker, of no set and of this one

    def interrupted(self: Store, name: str, content: Path | bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        put(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            push(directory, url, quiet=True, **options)


def contents(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: b"".join(map(bytes, store.stream(name))) for name in store.sizes() or ()}


def in_folder(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Another set of files with the names and sizes of those of `tiny`."""
    (tmp_path / "alike").mkdir()
    packed_set(tmp_path / "alike")
    manifest = load_manifest(tmp_path / "alike")
    for shard in manifest.splits["train"].shards:
        for name in (shard.tar, shard.index):
            content = (tmp_path / "alike" / name).read_bytes()
            (tmp_path / "alike" / name).write_bytes(content[::-1])
    write_manifest(tmp_path / "alike", manifest.model_copy(update={"dataset": "alike"}))
    return tmp_path / "alike"


def test_an_interrupted_replacement_continues_and_mixes_no_sets(
    tiny: Path, alike: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny, url, quiet=True)
    interrupt_after(2, alike, url, monkeypatch, overwrite=True)
    with pytest.raises(UserError, match=r"A whole set has a manifest\.json there"):
        load_manifest(url)
    assert push(alike, url, overwrite=True, quiet=True) == len(in_folder(alike)) - 2
    assert contents(url) == in_folder(alike)


def test_another_set_after_an_interrupted_upload_is_sent_whole(
    tiny: Path, alike: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(4, tiny, url, monkeypatch)
    assert push(alike, url, quiet=True) == len(in_folder(alike))
    assert contents(url) == in_folder(alike)


def test_a_file_that_the_store_changed_is_sent_again_if_asked(tiny: Path, url: str) -> None:
    push(tiny, url, quiet=True)
    Store(url).put("train-00002.tar", bytes((tiny / "train-00002.tar").stat().st_size))
    assert push(tiny, url, quiet=True) == 0
    assert push(tiny, url, overwrite=True, quiet=True) == len(in_folder(tiny))
    assert contents(url) == in_folder(tiny)


def test_an_interrupted_upload_is_no_set_and_continues(
    tiny: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(3, tiny, url, monkeypatch)
    with pytest.raises(UserError, match=r"A whole set has a manifest\.json there"):
        load_manifest(url)
    assert push(tiny, url, quiet=True) == len(list(tiny.iterdir())) - 3


def test_another_set_is_replaced_only_if_asked(tiny: Path, url: str, tmp_path: Path) -> None:
    push(tiny, url, quiet=True)
    (tmp_path / "other").mkdir()
    packed_set(tmp_path / "other", [3, 4])
    with pytest.raises(UserError, match="has another packed set"):
        push(tmp_path / "other", url, quiet=True)
    push(tmp_path / "other", url, overwrite=True, quiet=True)
    assert load_manifest(url) == load_manifest(tmp_path / "other")


def test_a_manifest_that_cannot_be_read_now_is_not_taken_for_another_set(
    tiny: Path, url: str
) -> None:
    push(tiny, url, quiet=True)
    client = boto3.client("s3", region_name="us-east-1")
    body = (tiny / "manifest.json").read_bytes()
    client.put_object(
        Bucket="tweets", Key="set/manifest.json", Body=body, StorageClass="GLACIER"
    )  # listed, and an answer of 403 until it is restored
    with pytest.raises(StoreError, match="InvalidObjectState"):
        push(tiny, url, quiet=True)


def test_a_store_that_takes_nothing_keeps_the_set_that_it_has(
    tiny: Path, alike: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tiny, url, quiet=True)

    def away(self: Store, name: str, content: Path | bytes) -> None:
        raise StoreError(f"{name}: 503 Service Unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", away)
        with pytest.raises(StoreError, match="503"):
            push(alike, url, overwrite=True, quiet=True)
    assert contents(url) == in_folder(tiny)


def test_packing_to_a_store(url: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw.csv"
    rows = "".join(f"a text number {n},{'good' if n % 2 else 'bad'}\n" for n in range(40))
    raw.write_text("text,label\n" + rows)
    options = ["--quiet", "--workers", "1", "--keep-missing", "image"]
    assert main(["pack", "table", str(raw), url, *options]) == 0
    assert sum(split.num_samples for split in load_manifest(url).splits.values()) == 40
    assert main(["pack", "table", str(raw), url, "--resume", *options]) == 2


def test_a_packing_to_a_store_keeps_nothing_to_resume(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw.csv"
    rows = [f"a text number {n},{'absent.jpg' if n > 3 else ''},good\n" for n in range(9)]
    raw.write_text("text,image,label\n" + "".join(rows))
    pack = ["pack", "table", str(raw), url, "--quiet", "--workers", "1", "--keep-missing", "image"]
    assert main(pack) == 2
    told = capsys.readouterr().err
    assert "'missing image' takes 5 of 9 samples (56 %)" in told
    assert "Mend the data, or add --allow-dropped to pack the rest. Paths of images are" in told
    assert "--resume" not in told

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shards.push.push", interrupted)
    assert main([*pack, "--allow-dropped"]) == 130
    told = capsys.readouterr().err
    assert told == "interrupted; nothing incomplete was left under its final name\n"
    assert Store(url).sizes() == {}


@pytest.mark.parametrize("place", ["https://host/set", "hf://datasets/me/set", "s3://me:pw@b/x"])
def test_places_that_cannot_be_written(
    tiny: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(tiny), place]) == 2
    assert "pw" not in capsys.readouterr().err


def test_a_bucket_that_is_not_there(url: str, tiny: Path) -> None:
    with pytest.raises(UserError, match="NoSuchBucket|not exist") as error:
        load_manifest("s3://no-such-bucket-here/set")
    assert "the-secret-key" not in str(error.value)
