"""verify: nothing that differs from what was packed goes unnoticed."""

import hashlib
import json
import os
import random
import shutil
import zlib
from pathlib import Path

import pytest
from raw import jpeg, raw_tree

from mmsa.data.index_file import index_bytes, read_index
from mmsa.data.manifest import load_manifest, write_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.files import files_at
from mmsa.errors import ShardDamage, UserError
from mmsa.labels import class_map
from shards.__main__ import main
from shards.packing.tars import PackedSample, write_shard

SIZE = {"width": 40, "height": 32}  # of `jpeg(1)`


def faults(out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    code = main(["verify", str(out), "--quiet", "--workers", "1", *options])
    lines = capsys.readouterr().out.splitlines()
    assert code == (1 if lines else 0)
    return lines


@pytest.fixture
def packed(small_packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_packed, tmp_path / "out"))


def test_a_whole_set_has_no_fault(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(packed, capsys) == []
    assert faults(packed, capsys, "--deep") == []
    assert main(["verify", str(packed), "--workers", "2"]) == 0
    assert "20 samples in 5 shards, no fault" in capsys.readouterr().out


def test_one_changed_byte_anywhere_is_found(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every byte of the smallest index, and hundreds of each other file, set to another value."""
    rng = random.Random(0)
    files = sorted(path for path in packed.iterdir() if path.name != "README.md")
    assert {path.suffix for path in files} == {".tar", ".idx", ".json", ".jsonl"}
    for path in files:
        content = path.read_bytes()
        places = set(rng.sample(range(len(content)), min(len(content), 40)))
        places |= {0, len(content) - 1}
        for place in places:
            changed = bytearray(content)
            changed[place] ^= rng.choice((1, 0x20, 0x80, 0xFF))
            path.write_bytes(changed)
            found = faults(packed, capsys)
            assert found, f"byte {place} of {path.name}"
            assert path.name in "\n".join(found)
            assert "classes in its index" not in "\n".join(found)  # no fault told twice
        path.write_bytes(content)
    assert faults(packed, capsys) == []


@pytest.mark.parametrize("layout", [b"\n", b" ", b"\t"])
def test_the_layout_of_the_manifest_counts_too(
    packed: Path, capsys: pytest.CaptureFixture[str], layout: bytes
) -> None:
    path = packed / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b"\n ", b"\n" + layout, 1) + layout)
    assert "not the bytes that packing wrote" in faults(packed, capsys)[0]


def test_missing_cut_and_foreign_files(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar, index = packed / "train-00000.tar", packed / "train-00001.idx"
    tar.write_bytes(tar.read_bytes()[:-512])
    index.unlink()
    (packed / "train-00009.tar").write_bytes(b"")
    (packed / "rejected.jsonl").unlink()
    found = "\n".join(faults(packed, capsys))
    assert "train-00000.tar has" in found
    assert "train-00001.idx cannot be read" in found
    assert "train-00009.tar is not in manifest.json" in found
    assert "rejected.jsonl cannot be read" in found
    (packed / "manifest.json").unlink()
    assert main(["verify", str(packed)]) == 2  # nothing to verify against


def test_what_a_cut_leaves_out_is_said_once(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = packed / "train-00000.tar"
    whole = tar.read_bytes()
    for kept, behind, first in ((0, 6, 0), (len(whole) // 2, 2, 4), (1, 6, 0)):
        tar.write_bytes(whole[:kept])
        found = [line for line in faults(packed, capsys) if "train-00000.tar" in line]
        assert len(found) == 3  # its size, its digest, its samples
        words = f"ends at byte {kept}, before {behind} of its 6 samples: the first is sample"
        assert f"{words} {first}" in found[2]


@pytest.mark.parametrize("name", ["train-00000.tar", "train-00000.idx", "manifest.json"])
def test_a_named_pipe_is_not_waited_for(
    packed: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    manifest = load_manifest(packed)
    (packed / name).unlink()
    os.mkfifo(packed / name)
    if name == "manifest.json":
        with pytest.raises(UserError, match="a named pipe"):
            load_manifest(packed)
        return
    assert f"{name} cannot be read (it is a named pipe" in "\n".join(faults(packed, capsys))
    reader = SplitReader(packed, manifest, "train", class_map(manifest.classes, None))
    with pytest.raises(ShardDamage, match="cannot be read"):  # and so does training
        reader.read(0, 0)


def test_samples_that_are_listed_twice_are_met_by_every_reader(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = load_manifest(packed)
    train, val = manifest.splits["train"], manifest.splits["val"]
    other = train.shards[1]
    for name in (other.tar, other.index):
        shutil.copy(packed / name, packed / f"val-9{name}")
    renamed = other.model_copy(update={"tar": f"val-9{other.tar}", "index": f"val-9{other.index}"})
    for splits, words in (
        ({"val": train}, "as train-00000.tar in train and as train-00000.tar in val"),
        (
            {"train": train.model_copy(update={"shards": (*train.shards, train.shards[0])})},
            "as train-00000.tar in train and as train-00000.tar in train",
        ),
        (
            {"val": val.model_copy(update={"shards": (renamed,)})},
            "as train-00001.tar in train and as val-9train-00001.tar in val",
        ),
    ):
        write_manifest(
            packed, manifest.model_copy(update={"splits": {**manifest.splits, **splits}})
        )
        with pytest.raises(UserError, match="lists the same samples twice") as caught:
            load_manifest(packed)
        assert words in str(caught.value)
        assert words in faults(packed, capsys)[0]


def test_a_text_over_the_limit(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resealed(packed, [PackedSample("a", "neutral", 1, "x" * 65_537, jpeg(1), SIZE)])
    manifest = load_manifest(packed)
    found = "\n".join(faults(packed, capsys))
    assert "val-00000.tar: a has 65,537 characters; at most 65,536 are read" in found
    reader = SplitReader(packed, manifest, "val", class_map(manifest.classes, None))
    with pytest.raises(ShardDamage, match="a text of 65,537 characters .sample 0."):
        reader.records(0)
    source = {**manifest.source, "facts": {"max_characters": 70_000}}
    write_manifest(packed, manifest.model_copy(update={"source": source}))
    assert "characters" not in "\n".join(faults(packed, capsys))
    allowing = load_manifest(packed)
    reader = SplitReader(packed, allowing, "val", class_map(allowing.classes, None))
    assert len(reader.read(0, 0).text) == 65_537


def resealed(out: Path, samples: list[PackedSample]) -> None:
    """Replace the val split by `samples`, every digest agreeing: only the content is wrong."""
    manifest = load_manifest(out)
    for shard in manifest.splits["val"].shards:
        (out / shard.tar).unlink()
        (out / shard.index).unlink()
    shard = write_shard(out, "val-00000", samples, manifest.classes)
    split = manifest.splits["val"].model_copy(
        update={"shards": (shard,), "num_samples": len(samples), "classes": shard.classes}
    )
    splits = {**manifest.splits, "val": split}
    write_manifest(out, manifest.model_copy(update={"splits": splits}))


def test_a_sample_that_is_no_tar_is_a_fault_among_others(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One byte of a header is wrong, and every digest agrees with it."""
    manifest = load_manifest(packed)
    split = manifest.splits["val"]
    shard = split.shards[0]
    records = read_index(files_at(packed), shard).copy()
    content = bytearray((packed / shard.tar).read_bytes())
    begin, length = int(records[0]["offset"]), int(records[0]["length"])
    content[begin + 156 : begin + 157] = b"x"  # the type of its first member
    records["crc32"][0] = zlib.crc32(content[begin : begin + length])
    tar_sha256 = hashlib.sha256(content).hexdigest()
    index = index_bytes(records, tar_bytes=len(content), tar_sha256=tar_sha256)
    (packed / shard.tar).write_bytes(content)
    (packed / shard.index).write_bytes(index)
    digests = {"tar_sha256": tar_sha256, "index_sha256": hashlib.sha256(index).hexdigest()}
    changed = (shard.model_copy(update=digests), *split.shards[1:])
    splits = {**manifest.splits, "val": split.model_copy(update={"shards": changed})}
    write_manifest(packed, manifest.model_copy(update={"splits": splits}))
    found = "\n".join(faults(packed, capsys))
    assert f"{shard.tar}: sample 0 cannot be read (ReadError: bad checksum)" in found


def test_a_key_in_two_splits(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = json.loads(_first_json(packed / "train-00000.tar"))["key"]
    resealed(packed, [PackedSample(seen, "neutral", 1, "text", jpeg(1), SIZE)])
    found = "\n".join(faults(packed, capsys))
    assert f"the key {seen} is in train-00000.tar and in val-00000.tar" in found
    assert "do not give the hash of protocol random" in found


def test_a_picture_that_does_not_decode(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = PackedSample("a", "neutral", 1, "text", jpeg(1), SIZE)
    cut = PackedSample("b", "neutral", 2, "text", jpeg(1)[:-100], SIZE)
    other = PackedSample("c", "neutral", 3, "text", jpeg(1), {"width": 41, "height": 32})
    resealed(packed, [good, cut, other])
    shallow = faults(packed, capsys, "--no-decode")
    assert not any("its image" in line for line in shallow)
    assert faults(packed, capsys) == faults(packed, capsys, "--deep")  # the older name
    deep = "\n".join(faults(packed, capsys))
    assert "val-00000.tar: b: its image does not decode (truncated image)" in deep
    assert "val-00000.tar: c: its image is a JPEG of 40x32, its json says 41x32" in deep


def test_a_group_in_two_splits_of_clean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral"] * 20)
    out = tmp_path / "out"
    assert main(["pack", "mvsa-single", str(raw), str(out), "--quiet"]) == 0
    manifest = load_manifest(out)
    clean = manifest.protocol.model_copy(update={"name": "clean"})
    assert manifest.protocol.name == "clean"
    assert faults(out, capsys) == []
    facts = json.loads(_first_json(out / manifest.splits["train"].shards[0].tar))
    twin = PackedSample("x", "neutral", int(facts["group"], 16), "text", jpeg(1), SIZE)
    resealed(out, [twin])
    sealed = load_manifest(out)
    digest = _hash_with(out)
    protocol = clean.model_copy(update={"hash": digest})
    write_manifest(out, sealed.model_copy(update={"protocol": protocol}))
    assert "1 duplicate groups are in two splits" in "\n".join(faults(out, capsys))


def _first_json(tar: Path) -> bytes:
    import webdataset as wds

    content: bytes = next(iter(wds.WebDataset(str(tar), shardshuffle=False)))["json"]
    return content


def _hash_with(out: Path) -> str:
    import webdataset as wds

    lines = []
    for name, split in load_manifest(out).splits.items():
        for shard in split.shards:
            for sample in wds.WebDataset(str(out / shard.tar), shardshuffle=False):
                lines.append(f"{name}\t{sample['__key__']}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
