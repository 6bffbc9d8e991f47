"""Samples read by offset: equal to what `tarfile` reads, and every damage named."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip, replace_records
from packed import SIZES, open_split, packed_set, sample, seal, write_split

from mmsa.data.index_file import key_hash, read_index
from mmsa.data.manifest import load_manifest
from mmsa.data.members import tar_members
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.errors import ShardDamage, UserError
from mmsa.labels import class_map
from shards.packing.tars import PackedSample

EVERYWHERE = [(shard, n) for shard, size in enumerate(SIZES) for n in range(size)]


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "set"))


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def read_all(reader: SplitReader) -> list[RawSample]:
    return [reader.read(shard, n) for shard, n in EVERYWHERE]


def test_each_sample_is_what_tarfile_reads(tiny: Path, reader: SplitReader) -> None:
    assert len(reader) == 25
    assert reader.sizes.tolist() == [7, 0, 12, 1, 5]
    samples = read_all(reader)
    assert [one.key for one in samples] == [f"tiny-train-{n}" for n in range(25)]
    for one in samples:
        members = members_of(tiny / one.shard)
        assert one.image == members[f"{one.key}.jpg"]
        assert one.text.encode() == members[f"{one.key}.txt"]
        assert one.meta == json.loads(members[f"{one.key}.json"])
        assert one.meta["label"] == ("negative", "neutral", "positive")[one.label]
        assert one.key_hash == key_hash(one.key)


def test_all_records_are_in_the_manifests_order(reader: SplitReader) -> None:
    places, records = reader.all_records()
    assert [tuple(place) for place in places.tolist()] == EVERYWHERE
    assert records["key_hash"].tolist() == [key_hash(f"tiny-train-{n}") for n in range(25)]
    assert records["text_length"].tolist() == [len(one.text) for one in read_all(reader)]


@pytest.mark.parametrize(
    ("wanted", "sizes", "labels", "counts"),
    [
        (None, [7, 0, 12, 1, 5], [0, 1, 2, 0, 1, 2, 0], [9, 8, 8]),
        (["positive", "negative"], [5, 0, 8, 0, 4], [1, 0, 1, 0, 1], [8, 9]),
        (
            {"calm": ["neutral"], "loud": ["negative", "positive"]},
            [7, 0, 12, 1, 5],
            [1, 0, 1, 1, 0, 1, 1],
            [8, 17],
        ),
    ],
)
def test_classes_are_left_out_and_merged(
    tiny: Path, wanted: Any, sizes: list[int], labels: list[int], counts: list[int]
) -> None:
    manifest = load_manifest(tiny)
    reader = SplitReader(tiny, manifest, "train", class_map(manifest.classes, wanted))
    assert reader.sizes.tolist() == sizes
    assert reader.class_counts().tolist() == counts
    assert [reader.read(0, n).label for n in range(sizes[0])] == labels
    kept = [reader.read(shard, n) for shard, size in enumerate(sizes) for n in range(size)]
    assert np.bincount([one.label for one in kept]).tolist() == counts
    assert len({one.key for one in kept}) == len(reader) == sum(sizes)


def test_the_identity_is_of_data_split_and_kept_classes(tiny: Path) -> None:
    manifest = load_manifest(tiny)

    def identity(wanted: Any) -> str:
        return SplitReader(tiny, manifest, "train", class_map(manifest.classes, wanted)).identity

    assert identity(None) == f"{manifest.digest}/train/negative,neutral,positive"
    assert identity(["positive", "negative"]) == identity(["negative", "positive"])
    assert identity(["positive", "negative"]) != identity(None)
    # Merging changes labels, not samples: the order may stay.
    assert identity({"a": ["negative"], "b": ["neutral", "positive"]}) == identity(None)


def test_a_reader_travels_by_pickle(reader: SplitReader) -> None:
    unread = len(pickle.dumps(reader))
    before = read_all(reader)
    assert len(pickle.dumps(reader)) == unread  # neither indexes nor open files travel
    twin = pickle.loads(pickle.dumps(reader))
    assert read_all(twin) == before
    assert read_all(reader) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_many_shards_are_read_with_few_open_files(tmp_path: Path) -> None:
    manifest = packed_set(tmp_path, [1] * 70)
    before = len(os.listdir("/proc/self/fd"))
    reader = open_split(tmp_path, manifest)
    for _ in range(2):
        keys = [reader.read(shard, 0).key for shard in range(70)]
        assert keys == [f"tiny-train-{n}" for n in range(70)]
    assert len(os.listdir("/proc/self/fd")) <= before + 64
    del reader
    assert len(os.listdir("/proc/self/fd")) == before


def long_sample(key: str) -> PackedSample:
    base = sample(0)
    return PackedSample(key, base.label, key_hash(key), base.text, base.image, base.facts)


@pytest.mark.parametrize("key", ["k" * 140, "tweet-é", "é" * 90])
def test_names_that_need_extra_headers_are_read(tmp_path: Path, key: str) -> None:
    shards = [[sample(1), long_sample(key), sample(2)]]
    manifest = seal(tmp_path, {"train": write_split(tmp_path, "train", shards)})
    reader = open_split(tmp_path, manifest)
    assert [reader.read(0, n).key for n in range(3)] == ["tiny-train-1", key, "tiny-train-2"]
    assert reader.read(0, 1).image == sample(0).image


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("with_folder", [False, True])
def test_members_of_any_tar_format(form: int, with_folder: bool) -> None:
    names = ["a.txt", "folder/b.txt", f"{'deep/' * 30}c.txt", f"{'n' * 90}.json"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        if with_folder:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = number * 300
            member.mtime = 0.5 if form == tarfile.PAX_FORMAT else 0  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
    expected = [(name, bytes([number]) * (number * 300)) for number, name in enumerate(names)]
    assert tar_members(buffer.getvalue()) == expected


# Damage. What one bit can spoil is found at the sample it belongs to, and nowhere else.


def damaged(directory: Path, shard: int, n: int, *, at: int) -> ShardDamage:
    """The error of reading a sample after flipping a bit `at` bytes behind its start."""
    manifest = load_manifest(directory)
    info = manifest.splits["train"].shards[shard]
    offset = int(read_index(directory, info)[n]["offset"])
    flip(directory / info.tar, offset + at)
    reader = open_split(directory, manifest)
    with pytest.raises(ShardDamage) as damage:
        reader.read(shard, n)
    others = [place for place in EVERYWHERE if place != (shard, n)]
    assert len({reader.read(*place).key for place in others}) == 24
    return damage.value


def test_a_flipped_bit_in_an_image(copied: Path) -> None:
    damage = damaged(copied, 2, 3, at=700)
    assert (damage.shard, damage.key) == ("train-00002.tar", "tiny-train-10")
    assert "sample 3 (tiny-train-10)" in str(damage)
    assert "crc32" in str(damage)
    assert "pack the data again" in str(damage)


def test_a_flipped_bit_in_a_header(copied: Path) -> None:
    size_field = damaged(copied, 2, 3, at=130)
    assert (size_field.shard, size_field.key) == ("train-00002.tar", "tiny-train-10")


def test_a_flipped_bit_in_a_name(copied: Path) -> None:
    assert damaged(copied, 0, 0, at=0).shard == "train-00000.tar"  # its key is not to be trusted


def test_a_flipped_bit_anywhere_is_found(copied: Path) -> None:
    manifest = load_manifest(copied)
    info = manifest.splits["train"].shards[4]
    records = read_index(copied, info)
    ends = records["offset"].astype(int) + records["length"].astype(int)
    reader = open_split(copied, manifest)
    rng = random.Random(0)
    for _ in range(300):
        at, bit = rng.randrange(int(ends[-1])), rng.randrange(8)
        owner = int(np.searchsorted(ends, at, side="right"))
        flip(copied / info.tar, at, bit)
        with pytest.raises(ShardDamage) as damage:
            reader.read(4, owner)
        assert damage.value.shard == "train-00004.tar"
        flip(copied / info.tar, at, bit)
    assert reader.read(4, 0).key == "tiny-train-20"


def test_a_truncated_tar(copied: Path) -> None:
    tar = copied / "train-00002.tar"
    records = read_index(copied, load_manifest(copied).splits["train"].shards[2])
    os.truncate(tar, int(records[6]["offset"]) + 600)
    reader = open_split(copied, load_manifest(copied))
    told = rf"has {tar.stat().st_size} bytes; expected {reader.shards[2].tar_bytes}\."
    with pytest.raises(ShardDamage, match=told) as damage:
        reader.check_tars()
    assert damage.value.shard == "train-00002.tar"
    assert [reader.read(2, n).key for n in range(6)] == [f"tiny-train-{n}" for n in range(7, 13)]
    with pytest.raises(ShardDamage, match="ends before the sample does") as damage:
        reader.read(2, 6)
    assert (damage.value.shard, damage.value.key) == ("train-00002.tar", "tiny-train-13")
    for n in range(7, 12):
        with pytest.raises(ShardDamage, match=r"train-00002\.tar is damaged"):
            reader.read(2, n)


def test_a_missing_tar(copied: Path) -> None:
    (copied / "train-00002.tar").unlink()
    reader = open_split(copied, load_manifest(copied))
    with pytest.raises(ShardDamage, match="cannot be read .No such file"):
        reader.check_tars()
    assert reader.read(0, 0).key == "tiny-train-0"
    with pytest.raises(ShardDamage, match="cannot be opened") as damage:
        reader.read(2, 0)
    assert (damage.value.shard, damage.value.key) == ("train-00002.tar", None)


def test_a_tar_of_another_shard(copied: Path) -> None:
    shutil.copy(copied / "train-00000.tar", copied / "train-00004.tar")
    with pytest.raises(ShardDamage, match="train-00004"):
        open_split(copied, load_manifest(copied)).read(4, 0)


@pytest.mark.parametrize("how", ["missing", "flipped", "of another shard", "truncated"])
def test_a_damaged_index(copied: Path, how: str) -> None:
    index = copied / "train-00002.idx"
    if how == "missing":
        index.unlink()
    elif how == "flipped":
        flip(index, 200)
    elif how == "truncated":
        os.truncate(index, 64 + 40 * 11)
    else:
        shutil.copy(copied / "train-00000.idx", index)
    reader = open_split(copied, load_manifest(copied))
    assert reader.read(0, 0).key == "tiny-train-0"
    with pytest.raises(ShardDamage, match=r"train-00002\.idx") as damage:
        reader.read(2, 0)
    assert damage.value.shard == "train-00002.tar"


def test_records_that_contradict_the_tar(copied: Path) -> None:
    # As an index written by another program might: every checksum agrees.
    records = read_index(copied, load_manifest(copied).splits["train"].shards[0]).copy()
    swapped = records.copy()
    swapped["key_hash"][[1, 2]] = records["key_hash"][[2, 1]]
    manifest = replace_records(copied, "train", 0, swapped)
    with pytest.raises(ShardDamage, match="its key is 'tiny-train-1'") as damage:
        open_split(copied, manifest).read(0, 1)
    assert damage.value.key == "tiny-train-1"
    for field, value in (("offset", (1 << 64) - 512), ("offset", 1 << 40), ("length", 1 << 31)):
        beyond = records.copy()
        beyond[field][6] = value
        with pytest.raises(ShardDamage, match=r"points past the end of train-00000\.tar"):
            open_split(copied, replace_records(copied, "train", 0, beyond)).read(0, 1)


def test_records_that_contradict_the_manifest(copied: Path) -> None:
    records = read_index(copied, load_manifest(copied).splits["train"].shards[0]).copy()
    records["label"][0] = 1
    manifest = replace_records(copied, "train", 0, records)
    classes = class_map(manifest.classes, ["negative", "positive"])
    with pytest.raises(ShardDamage, match="counts 4 samples of the kept classes.*says 5"):
        SplitReader(copied, manifest, "train", classes).records(0)
    records["label"][0] = 3
    with pytest.raises(ShardDamage, match="labels that the manifest does not name"):
        open_split(copied, replace_records(copied, "train", 0, records)).records(0)


def test_damage_travels_by_pickle_as_what_it_is() -> None:
    damage = pickle.loads(pickle.dumps(ShardDamage("what", shard="s.tar", key="k")))
    assert isinstance(damage, UserError)
    assert (type(damage), str(damage), damage.shard, damage.key) == (
        ShardDamage,
        "what",
        "s.tar",
        "k",
    )
