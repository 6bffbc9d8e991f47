"""Packing as a command: what it writes, what it drops, and that nothing half done stays."""

import hashlib
import io
import json
import random
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset as wds
from PIL import Image
from raw import digests, jpeg, raw_tree, rejected, write_labels, write_pair

from mmsa.data.index_file import key_hash, read_index
from mmsa.data.manifest import load_manifest
from shards.__main__ import main
from shards.packing.pack import pack
from shards.packing.settings import PackSettings
from shards.splits.protocols import parse_ratios


def run(raw: Path, out: Path, *options: str) -> int:
    return main(["pack", "mvsa-single", str(raw), str(out), "--quiet", *options])


def test_the_manifest(small_packed: Path) -> None:
    manifest = load_manifest(small_packed)
    assert manifest.dataset == "mvsa-single"
    assert manifest.classes == ("negative", "neutral", "positive")
    assert manifest.label_rule == "fusion"
    assert manifest.source["name"] == "mvsa-single"
    assert manifest.source["read"] == 22
    assert manifest.source["kept"] == 20
    assert manifest.source["dropped"] == {"labels conflict": 2}
    content = (small_packed / "rejected.jsonl").read_bytes()
    assert manifest.source["rejected_sha256"] == hashlib.sha256(content).hexdigest()
    assert {name: split.classes for name, split in manifest.splits.items()} == {
        "train": {"negative": 5, "neutral": 3, "positive": 8},
        "val": {"negative": 0, "neutral": 0, "positive": 1},
        "test": {"negative": 1, "neutral": 1, "positive": 1},
    }
    assert [shard.tar for shard in manifest.splits["train"].shards] == [
        "train-00000.tar",
        "train-00001.tar",
        "train-00002.tar",
    ]
    assert [shard.num_samples for shard in manifest.splits["train"].shards] == [6, 5, 5]
    assert manifest.packing["image_short_side_px"] == 256
    assert manifest.packing["pillow"]
    assert manifest.packing["libjpeg"]
    assert manifest.protocol.settings == {"seed": 0, "ratios": {"train": 8, "val": 1, "test": 1}}


def test_the_files(small_packed: Path) -> None:
    manifest = load_manifest(small_packed)
    listed = {"manifest.json", "rejected.jsonl", "README.md"}
    for split in manifest.splits.values():
        for shard in split.shards:
            listed |= {shard.tar, shard.index}
            content = (small_packed / shard.tar).read_bytes()
            assert len(content) == shard.tar_bytes
            assert hashlib.sha256(content).hexdigest() == shard.tar_sha256
    assert {path.name for path in small_packed.iterdir()} == listed
    assert rejected(small_packed) == [
        {"source_id": "21", "reason": "labels conflict", "detail": "text positive, image negative"},
        {"source_id": "22", "reason": "labels conflict", "detail": "text negative, image positive"},
    ]


def test_a_stock_reader_reads_every_sample(small_packed: Path) -> None:
    seen = {}
    for tar in sorted(small_packed.glob("*.tar")):
        for sample in wds.WebDataset(str(tar), shardshuffle=False):
            assert sample["__key__"] not in seen
            seen[sample["__key__"]] = sample
    assert sorted(seen) == sorted(f"mvsa-single-{number}" for number in range(1, 21))
    sample = seen["mvsa-single-5"]
    assert sample["txt"] == b"tweet number 5"
    assert Image.open(io.BytesIO(sample["jpg"])).size == (40, 32)
    group = f"{key_hash('mvsa-single-5'):016x}"
    expected = (
        '{"dataset":"mvsa-single","group":"' + group + '","height":32,'
        '"image_label":"neutral","key":"mvsa-single-5","label":"positive","source_id":"5",'
        '"text_label":"positive","width":40}'
    )
    assert sample["json"].decode() == expected


def test_the_index_finds_each_sample(small_packed: Path) -> None:
    manifest = load_manifest(small_packed)
    for split in manifest.splits.values():
        for shard in split.shards:
            content = (small_packed / shard.tar).read_bytes()
            end = 0
            for record in read_index(small_packed, shard):
                assert record["offset"] == end
                end = int(record["offset"]) + int(record["length"])
                part = content[record["offset"] : end]
                assert zlib.crc32(part) == record["crc32"]
                with tarfile.open(fileobj=io.BytesIO(part)) as tar:
                    members = {member.name: tar.extractfile(member).read() for member in tar}
                names = list(members)
                key = names[0].removesuffix(".jpg")
                assert names == [f"{key}.jpg", f"{key}.txt", f"{key}.json"]
                facts = json.loads(members[f"{key}.json"])
                assert manifest.classes[record["label"]] == facts["label"]
                assert record["key_hash"] == key_hash(key)
                assert f"{record['group']:016x}" == facts["group"]
                assert record["text_length"] == len(members[f"{key}.txt"].decode())
            assert not any(content[end:])  # the end of a tar is blocks of zeros


def test_packing_twice_gives_the_same_bytes(small_raw: Path, tmp_path: Path) -> None:
    assert run(small_raw, tmp_path / "a") == 0
    elsewhere = tmp_path / "moved" / "raw"
    shutil.copytree(small_raw, elsewhere)
    assert run(elsewhere, tmp_path / "b") == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert run(small_raw, tmp_path / "c", "--seed", "1") == 0
    other, first = load_manifest(tmp_path / "c"), load_manifest(tmp_path / "a")
    assert other.protocol.hash != first.protocol.hash
    assert other.splits["train"].classes == first.splits["train"].classes


def test_large_pictures_are_reduced_and_small_ones_kept(tmp_path: Path) -> None:
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral"] * 2)
    (raw / "data" / "1.jpg").write_bytes(jpeg(1, size=(600, 300)))
    assert run(raw, tmp_path / "out", "--image-short-side", "64", "--ratios", "1:0:0") == 0
    sizes = {
        sample["__key__"]: Image.open(io.BytesIO(sample["jpg"])).size
        for sample in wds.WebDataset(str(tmp_path / "out" / "train-00000.tar"), shardshuffle=False)
    }
    assert sizes == {"mvsa-single-1": (128, 64), "mvsa-single-2": (40, 32)}
    assert list(load_manifest(tmp_path / "out").splits) == ["train"]


def test_bad_pictures_are_listed_and_take_no_part_in_the_split(tmp_path: Path) -> None:
    raw = raw_tree(tmp_path / "raw", ["positive,positive"] * 15)
    data = raw / "data"
    (data / "2.jpg").unlink()
    (data / "4.jpg").write_bytes(b"")
    (data / "6.jpg").write_bytes(b"no picture at all")
    (data / "8.jpg").write_bytes((data / "8.jpg").read_bytes()[:-200])
    with Image.new("RGB", (70_000, 1)) as picture:  # wider than a JPEG can be
        picture.save(data / "10.jpg", "PNG")
    assert run(raw, tmp_path / "out") == 0
    assert [(item["source_id"], item["reason"]) for item in rejected(tmp_path / "out")] == [
        ("2", "missing image"),
        ("4", "empty image file"),
        ("6", "unreadable image"),
        ("8", "truncated image"),
        ("10", "image too large"),
    ]
    manifest = load_manifest(tmp_path / "out")
    assert manifest.source["dropped"] == {
        "missing image": 1,
        "unreadable image": 1,
        "empty image file": 1,
        "truncated image": 1,
        "image too large": 1,
    }
    counts = {name: split.num_samples for name, split in manifest.splits.items()}
    assert counts == {"train": 8, "val": 1, "test": 1}


def test_no_usable_sample_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_tree(tmp_path / "raw", ["positive,negative", "negative,positive"])
    write_pair(raw, "3")
    assert run(raw, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "none of the 3 samples" in message
    assert "2 x labels conflict, 1 x no label line" in message
    write_labels(tmp_path / "empty", [])
    (tmp_path / "empty" / "data").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 2
    assert "has no samples" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "raw"]


def test_an_existing_place_is_refused_or_moved_aside(
    small_raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    assert run(small_raw, out, "--overwrite") == 2  # nothing says that packing made it
    assert "contains neither shards" in capsys.readouterr().err
    (out / "manifest.json").write_text("{}")
    assert run(small_raw, out) == 2
    assert "already exists" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "precious"
    assert run(small_raw, out, "--overwrite") == 0
    assert "was moved to" in capsys.readouterr().out
    assert run(small_raw, out, "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.old", "out.old-1"]
    assert (tmp_path / "out.old" / "mine.txt").read_text() == "precious"
    assert load_manifest(tmp_path / "out.old-1").digest == load_manifest(out).digest


def test_a_failed_overwrite_leaves_the_old_one(small_packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small_packed, out)
    before = digests(out)
    raw = raw_tree(tmp_path / "raw", ["positive,negative"])
    assert run(raw, out, "--overwrite") == 2
    assert digests(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_the_raw_data_cannot_be_moved_aside(small_raw: Path, tmp_path: Path) -> None:
    raw = tmp_path / "all" / "raw"
    shutil.copytree(small_raw, raw)
    before = digests(tmp_path)
    assert run(raw, raw, "--overwrite") == 2
    assert run(raw, tmp_path / "all", "--overwrite") == 2
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "best"], "unknown protocol 'best'; known: clean"),
        (["--seed", "-1"], "--seed -1"),
        (["--image-short-side", "0"], "--image-short-side 0"),
        (["--image-quality", "101"], "--image-quality 101"),
        (["--samples-per-shard", "0"], "--samples-per-shard 0"),
        (["--ratios", "8:1"], "three whole numbers"),
        (["--seed", "-1", "--image-quality", "0"], "2 problems"),
        (["--image-short-side", "large"], "a number of pixels, original, or square:PIXELS"),
        (["--shard-size", "0MB"], "a number with a unit"),
        (["--shard-size", "1.5"], "a number with a unit"),
        (["--shard-size", "64M"], "a number with a unit"),
        (["--part", "3/2"], "I/N with I from 1 to N"),
        (["--workers", "0"], "--workers 0"),
        (["--max-pixels", "0"], "--max-pixels 0"),
    ],
)
def test_wrong_settings(
    small_raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert run(small_raw, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fuzzed_raw_data(tmp_path: Path) -> None:
    """Damaged label lines, texts and pictures: read is kept and dropped, and nothing crashes."""
    clean = raw_tree(tmp_path / "clean", ["positive,positive", "neutral,negative"] * 6)
    rng = random.Random(0)
    outcomes = set()
    for number in range(60):
        raw, out = tmp_path / f"raw-{number}", tmp_path / f"out-{number}"
        shutil.copytree(clean, raw)
        for path in [raw / "labelResultAll.txt", *rng.sample(sorted((raw / "data").iterdir()), 6)]:
            path.write_bytes(_damaged(path.read_bytes(), rng))
        code = run(raw, out)
        outcomes.add(code)
        if code == 2:
            assert not out.exists()
            continue
        manifest = load_manifest(out)
        kept = sum(split.num_samples for split in manifest.splits.values())
        assert manifest.source["kept"] == kept
        assert manifest.source["read"] == kept + sum(manifest.source["dropped"].values())
        assert manifest.source["read"] == kept + len(rejected(out))
        assert manifest.source["read"] >= 12
    assert 0 in outcomes
    assert outcomes <= {0, 2}


def _damaged(content: bytes, rng: random.Random) -> bytes:
    """`content` with bytes changed, cut out, put in twice, or cut off."""
    damaged = bytearray(content)
    for _ in range(rng.randint(0, 6)):
        place = rng.randrange(len(damaged) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            damaged[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del damaged[place : place + rng.randint(1, 12)]
        elif kind == 2:
            damaged[place:place] = damaged[: rng.randint(1, 60)]
        elif rng.random() < 0.2:
            del damaged[place:]
    return bytes(damaged)


def test_pack_from_python_says_where_the_old_one_went(small_raw: Path, tmp_path: Path) -> None:
    settings = PackSettings(ratios=parse_ratios("8:1:1"))
    first = pack("mvsa-single", small_raw, tmp_path / "out", settings, quiet=True)
    assert first.moved_to is None
    again = pack("mvsa-single", small_raw, tmp_path / "out", settings, overwrite=True, quiet=True)
    assert again.moved_to == tmp_path / "out.old"
    assert again.manifest == first.manifest
