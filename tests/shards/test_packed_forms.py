"""Forms of pictures and sizes of shards; bytes that do not depend on workers, parts or writers."""

import gc
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from raw import digests, jpeg, raw_tree

from mmsa.data.decoding.packed_form import image_as_packed
from mmsa.data.index_file import key_hash
from mmsa.data.manifest import load_manifest
from mmsa.foundation import atomic_write
from mmsa.preprocessing import Preprocessing
from shards.__main__ import main
from shards.packing import pack as packing
from shards.packing.chunks import Chunk
from shards.packing.settings import parse_part, parse_size
from shards.packing.tars import PackedSample, write_shard

CHUNKS = 3  # of 128 examples: enough that workers and parts share something


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = ["positive,positive", "neutral,negative", "neutral,neutral", "positive,negative"]
    made = raw_tree(tmp_path_factory.mktemp("forms") / "raw", pairs * (32 * CHUNKS - 1))
    (made / "data" / "9.jpg").write_bytes(b"broken")
    (made / "data" / "200.jpg").unlink()
    return made


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(raw, out, "--workers", "1") == 0
    return out


def run(raw: Path, out: Path, *options: str) -> int:
    return main(["pack", "mvsa-single", str(raw), str(out), "--quiet", *options])


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_do_not_depend_on_workers(
    raw: Path, whole: Path, tmp_path: Path, workers: int
) -> None:
    assert run(raw, tmp_path / "out", "--workers", str(workers)) == 0
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.parametrize("parts", [1, 2, 5])  # 5: more parts than chunks
def test_the_bytes_do_not_depend_on_parts(
    raw: Path, whole: Path, tmp_path: Path, parts: int
) -> None:
    out = tmp_path / "set[v2]*"  # no pattern
    for part in range(parts, 0, -1):  # jobs of an array end in any order
        assert run(raw, out, "--part", f"{part}/{parts}") == 0
    assert not out.exists()
    assert main(["merge", str(out), "--quiet", "--remove-parts"]) == 0
    assert digests(out) == digests(whole)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_part_that_was_interrupted_at_its_end_is_resumed(
    raw: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its last chunk and its rename all files are flushed, which takes long."""
    out = tmp_path / "out"
    part = ["--part", "1/1", "--workers", "1"]

    def interrupted(directory: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "flush_tree", interrupted)
        assert run(raw, out, *part) == 130
        work = tmp_path / ".out.part-1-of-1.packing"
        encoded = {path.name: path.stat().st_mtime_ns for path in work.rglob("chunk-*")}
        assert len(encoded) == 2 * CHUNKS
        (work / "chunks").mkdir()  # as an older version's --resume left it
        (work / "chunks" / "chunk-000000.bin").write_bytes(b"of another attempt")
        assert run(raw, out, *part, "--resume") == 130
    assert run(raw, out, *part, "--resume") == 0
    packed = tmp_path / "out.part-1-of-1"
    assert {p.name: p.stat().st_mtime_ns for p in (packed / "chunks").iterdir()} == encoded
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]
    assert main(["merge", str(out), "--quiet"]) == 0
    assert digests(out) == digests(whole)


def test_merge_says_what_is_wrong(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused() -> str:
        assert main(["merge", str(out), "--quiet"]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    assert "no parts found" in refused()
    assert run(raw, out, "--part", "1/3") == 0
    assert run(raw, out, "--part", "1/3") == 2
    assert "already exists" in capsys.readouterr().err
    assert "2 of the 3 parts of" in (message := refused())
    assert "2/3, 3/3" in message
    assert run(raw, out, "--part", "2/3", "--image-quality", "80") == 0
    assert run(raw, out, "--part", "3/3") == 0
    assert "are not parts of one packing: image_quality: 90 and 80; quality: 90 and 80" in refused()
    assert run(raw, out, "--part", "2/3", "--overwrite") == 0
    for path in tmp_path.glob("*.old"):
        path.rename(tmp_path / "aside")
    chunk = tmp_path / "out.part-2-of-3" / "chunks" / "chunk-000001.bin"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1] + b"?")
    assert "chunk-000001.bin is missing or damaged" in refused()
    chunk.write_bytes(content)
    assert main(["merge", str(out), "--quiet"]) == 0


def test_the_split_can_change_on_resume(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is costly does not depend on the split: a protocol that is refused loses nothing."""
    out = tmp_path / "out"
    assert run(raw, out, "--protocol", "clmlf") == 2
    assert "already encoded and kept: add --resume" in capsys.readouterr().err
    assert run(raw, out, "--protocol", "random", "--resume") == 0
    assert run(raw, tmp_path / "fresh", "--protocol", "random") == 0
    assert digests(out) == digests(tmp_path / "fresh")


def test_our_tars_have_the_bytes_of_webdataset(tmp_path: Path) -> None:
    sample = PackedSample("set-1", "neutral", key_hash("set-1"), "tëxt", jpeg(3), {"width": 40})
    write_shard(tmp_path, "ours", [sample], ("negative", "neutral"))
    with (
        (tmp_path / "theirs.tar").open("wb") as file,
        wds.TarWriter(
            file, user="mmsa", group="mmsa", mode=0o644, encoder=False, mtime=0, compress=False
        ) as writer,
    ):
        for extension, content in sample.members().items():
            writer.write({"__key__": "set-1", extension: content})
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@pytest.mark.parametrize(
    ("form", "mode", "side"),
    [("32", "short_side", 32), ("original", "original", None), ("square:48", "square", 48)],
)
def test_prediction_reads_what_was_packed(
    tmp_path: Path, form: str, mode: str, side: int | None
) -> None:
    """The predictor's settings, taken from the manifest, give the bytes in the tar."""
    raw = raw_tree(tmp_path / "raw", ["neutral,neutral"] * 4)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(raw / "data" / "1.jpg", "JPEG", quality=75)
    Image.fromarray(pixels).convert("RGBA").save(raw / "data" / "2.jpg", "PNG")
    out = tmp_path / "out"
    options = ["--image-short-side", form, "--protocol", "random", "--ratios", "1:0:0"]
    assert run(raw, out, *options) == 0
    packing = load_manifest(out).packing
    settings = Preprocessing(
        packed_mode=packing["image_mode"],
        packed_short_side_px=packing["image_short_side_px"],
        packed_quality=packing["image_quality"],
    )
    assert (settings.packed_mode, settings.packed_short_side_px) == (mode, side)
    samples = {
        sample["__key__"]: sample
        for sample in wds.WebDataset(str(out / "train-00000.tar"), shardshuffle=False)
    }
    for number in range(1, 5):
        content = (raw / "data" / f"{number}.jpg").read_bytes()
        packed, width, height = image_as_packed(
            content,
            mode=settings.packed_mode,
            short_side_px=settings.packed_short_side_px,
            quality=settings.packed_quality,
        )
        sample = samples[f"mvsa-single-{number}"]
        assert sample["jpg"] == packed
        facts = json.loads(sample["json"])
        assert (facts["width"], facts["height"]) == (width, height)
        assert Image.open(io.BytesIO(packed)).size == (width, height)
    if form == "original":
        assert samples["mvsa-single-1"]["jpg"] == (raw / "data" / "1.jpg").read_bytes()
    assert main(["verify", str(out), "--deep", "--quiet"]) == 0


def test_shards_by_size(raw: Path, tmp_path: Path) -> None:
    assert run(raw, tmp_path / "out", "--shard-size", "100kB") == 0
    for split in load_manifest(tmp_path / "out").splits.values():
        sizes = [shard.num_samples for shard in split.shards]
        assert max(sizes) - min(sizes) <= 1
        # The end of a tar (up to 10,240 bytes of zeros) is not a sample's.
        assert all(shard.tar_bytes <= 100_000 + 10_240 for shard in split.shards)
        assert split.num_samples < 50 or len(sizes) > 1
    assert run(raw, tmp_path / "each", "--shard-size", "1B") == 0
    for split in load_manifest(tmp_path / "each").splits.values():
        assert {shard.num_samples for shard in split.shards} == {1}


def test_sizes_and_parts_are_read() -> None:
    assert parse_size("64MB") == 64_000_000
    assert parse_size("1.5GiB") == 1_610_612_736
    assert parse_size("500 kB") == 500_000
    assert parse_part("3/8") == (3, 8)


def test_a_packing_of_another_version_is_not_resumed(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / ".out.packing"
    work.mkdir()
    (work / "settings.json").write_text('{"source": "mvsa-single"}')  # as version 1 wrote it
    assert run(raw, tmp_path / "out", "--resume") == 2
    assert "started by another version of mmsa and cannot be resumed" in capsys.readouterr().err
    part = tmp_path / "out.part-1-of-1"
    part.mkdir()
    (part / "part.json").write_text('{"format": "mmsa-part", "version": 1}')
    assert main(["merge", str(tmp_path / "out"), "--quiet"]) == 2
    assert "packed by another version of mmsa (part format 1, this one" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--part", "1/1")])
def test_a_part_does_not_keep_its_samples_in_memory(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK_EXAMPLES", 2)
    raw = raw_tree(tmp_path / "raw", ["positive,positive"] * 20 + ["negative,negative"] * 20)
    held = []

    def counting(finish: Callable[..., Any]) -> Callable[..., Any]:
        def finish_and_count(*args: Any, **kwargs: Any) -> Any:
            held.append(sum(isinstance(thing, Chunk) for thing in gc.get_objects()))
            return finish(*args, **kwargs)

        return finish_and_count

    for name in ("assemble", "finish_part"):
        monkeypatch.setattr(packing, name, counting(getattr(packing, name)))
    assert run(raw, tmp_path / "out", "--workers", "1", *options) == 0
    assert held == [20] if not options else held[0] <= 2
