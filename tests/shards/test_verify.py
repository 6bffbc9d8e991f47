"""verify: nothing that differs from what was packed goes unnoticed."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from raw import jpeg, raw_tree

from mmsa.data.manifest import load_manifest, write_manifest
from shards.__main__ import main
from shards.packing.tars import PackedSample, write_shard


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


def test_a_key_in_two_splits(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = json.loads(_first_json(packed / "train-00000.tar"))["key"]
    resealed(packed, [PackedSample(seen, "neutral", 1, "text", jpeg(1), {})])
    found = "\n".join(faults(packed, capsys))
    assert f"the key {seen} is in train-00000.tar and in val-00000.tar" in found
    assert "do not give the hash of protocol random" in found


def test_a_picture_that_does_not_decode(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = PackedSample("a", "neutral", 1, "text", jpeg(1), {"width": 40, "height": 32})
    cut = PackedSample("b", "neutral", 2, "text", jpeg(1)[:-100], {"width": 40, "height": 32})
    other = PackedSample("c", "neutral", 3, "text", jpeg(1), {"width": 41, "height": 32})
    resealed(packed, [good, cut, other])
    shallow = faults(packed, capsys)
    assert not any("its image" in line for line in shallow)
    deep = "\n".join(faults(packed, capsys, "--deep"))
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
    twin = PackedSample("x", "neutral", int(facts["group"], 16), "text", jpeg(1), {})
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
