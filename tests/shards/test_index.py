"""index: tars that others packed, read by our reader; info on any packed set."""

import errno
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import torch
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from raw import digests, jpeg
from raw import rejected as rejected_lines

from mmsa.data.decoding import image_views
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import ShardDamage
from mmsa.labels import class_map
from shards.__main__ import main


def write_tar(path: Path, samples: list[dict[str, Any]]) -> None:
    with wds.TarWriter(str(path), encoder=False) as writer:  # with a PAX header per member
        for sample in samples:
            writer.write({k: v.encode() if k != "__key__" and isinstance(v, str) else v
                          for k, v in sample.items()})  # fmt: skip


def foreign(number: int, **fields: Any) -> dict[str, Any]:
    meta = json.dumps({"caption": f"caption {number}", "mood": ["glad", "sad"][number % 2]})
    return {"__key__": f"part/{number:04d}", "jpeg": jpeg(number), "meta": "x", "json": meta} | (
        fields
    )


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    directory = tmp_path / "theirs"
    directory.mkdir()
    write_tar(directory / "train-a.tar", [foreign(number) for number in range(6)])
    write_tar(directory / "validation.tar", [foreign(number) for number in range(6, 9)])
    write_tar(directory / "test-x.tar", [foreign(number) for number in range(9, 11)])
    return directory


FIELDS = ["--text-field", "json:caption", "--label-field", "json:mood"]


def run(directory: Path, *options: str) -> int:
    return main(["index", str(directory), "--quiet", "--workers", "1", *options])


def test_the_reader_reads_what_others_packed(
    tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in tars.glob("*.tar")}
    assert run(tars, *FIELDS) == 0
    assert {path.name: path.read_bytes() for path in tars.glob("*.tar")} == before
    manifest = load_manifest(tars)
    assert manifest.classes == ("glad", "sad")
    assert {name: split.classes for name, split in manifest.splits.items()} == {
        "train": {"glad": 3, "sad": 3},
        "val": {"glad": 2, "sad": 1},
        "test": {"glad": 1, "sad": 1},
    }
    reader = SplitReader(tars, manifest, "val", class_map(manifest.classes, ["sad", "glad"]))
    found = [reader.read(0, row) for row in range(len(reader))]
    assert [(one.key, one.text, one.label) for one in found] == [
        ("part/0006", "caption 6", 1),
        ("part/0007", "caption 7", 0),
        ("part/0008", "caption 8", 1),
    ]
    assert found[0].image == jpeg(6)
    assert main(["verify", str(tars), "--deep", "--quiet"]) == 0
    (tars / "train-a.tar").write_bytes(before["train-a.tar"].replace(b"caption 3", b"caption 4"))
    assert main(["verify", str(tars), "--quiet"]) == 1
    assert "train-a.tar: sample 3 does not match its crc32" in capsys.readouterr().out


def test_pictures_of_other_types_and_numbered_classes(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(buffer, "PNG")
    samples = [
        {"__key__": f"k{number}", "cls": str(number % 2), "png": buffer.getvalue(), "txt": "a"}
        for number in range(3)
    ]
    write_tar(tmp_path / "00000.tar", samples)
    assert run(tmp_path, "--split", "train=*.tar", "--classes", "no,yes") == 0
    manifest = load_manifest(tmp_path)
    assert manifest.splits["train"].classes == {"no": 2, "yes": 1}
    reader = SplitReader(tmp_path, manifest, "train", class_map(manifest.classes, None))
    assert image_views.decode(reader.read(0, 2).image)[:, 0, 0].tolist() == [1, 2, 3]
    assert run(tmp_path, "--split", "train=*.tar", "--classes", "no,yes") == 2  # there already
    assert run(tmp_path, "--split", "train=*.tar", "--classes", "yes,no", "--overwrite") == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"json": "{}"}, "no text (json:caption). Fields are named with --image-field and --text"),
        ({"json": '{"caption": ""}'}, "the text of 'part/0022' is empty"),
        ({"json": '{"caption": "a"}'}, "no class (json:mood); name it with --label-field"),
        ({"json": "{"}, "sample 2 does not fit"),
        ({"jpeg": b"hello"}, "the image of 'part/0022' is text; accepted are JPEG, PNG, GIF, WebP"),
        ({"jpeg": b"RIFF\0\0\0\0WAVE"}, "the image of 'part/0022' is a WAV file; accepted are"),
        (
            {"jpeg": jpeg(1)[:400] + b"\xff\xd9"},
            "the image of 'part/0022' does not decode (truncated image)",
        ),
        ({"jpeg": jpeg(1)[:-100]}, "the image of 'part/0022' does not decode (truncated image)"),
        ({"jpeg": jpeg(1)[:9]}, "the image of 'part/0022' does not decode"),
        ({"json": "[" * 9999}, "nested more than 100 levels deep"),
        (
            {"json": json.dumps({"caption": "x" * 65_537, "mood": "sad"})},
            "the text of 'part/0022' has 65,537 characters; --max-characters is 65,536",
        ),
        ({"json": json.dumps({"caption": " \t", "mood": "sad"})}, "text of 'part/0022' is empty"),
        ({"__key__": "part/0000"}, "its key 'part/0000' is also in"),
    ],
)
def test_the_first_sample_that_does_not_fit_is_named(
    tars: Path, capsys: pytest.CaptureFixture[str], bad: dict[str, Any], message: str
) -> None:
    write_tar(tars / "train-b.tar", [foreign(20), foreign(21), foreign(22, **bad), foreign(23)])
    assert run(tars, *FIELDS) == 2
    error = capsys.readouterr().err
    assert "train-b.tar: sample 2 does not fit" in error
    assert message in error
    assert "--skip-bad leaves" in error
    assert not list(tars.glob("*.idx"))
    assert not (tars / "manifest.json").exists()


def test_tars_that_cannot_be_used(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: str) -> str:
        assert run(tars, *FIELDS, *options) == 2
        return capsys.readouterr().err

    assert "has the class 'glad'; expected happy, sad" in refused("--classes", "happy,sad")
    assert "test-x.tar is in no split" in refused("--split", "val=val*.tar")
    assert "must be NAME=PATTERN" in refused("--split", "valid=*.tar")
    (tars / "train-c.tar").write_bytes(b"no tar")
    assert "train-c.tar is not a readable, uncompressed tar" in refused()
    with tarfile.open(tars / "train-c.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    assert "train-c.tar is not a readable, uncompressed tar" in refused()
    (tars / "train-c.tar").unlink()
    write_tar(tars / "train-c.tar", [foreign(30, json='{"caption": "a", "mood": 1}')])
    assert "are numbers: 1, glad, sad. To keep them as they are: --classes=1,glad,sad" in refused()
    assert run(tars / "absent") == 2


def test_samples_that_do_not_fit_are_left_out_and_listed(
    tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad: list[dict[str, Any]] = [
        {"json": '{"caption": "", "mood": "sad"}'},
        {"jpeg": b"<html><body>404"},
        {"jpeg": jpeg(1)[:-100]},
        {"json": '{"caption": "a"}'},
        {"json": "{"},
        {"json": json.dumps({"caption": "x" * 65_537, "mood": "sad"})},
        {"__key__": "part/0000"},
    ]
    samples = [foreign(20), *(foreign(30 + n, **one) for n, one in enumerate(bad)), foreign(21)]
    samples.insert(-1, {"__key__": "README", "md": "notes"})
    write_tar(tars / "train-b.tar", samples)
    assert run(tars, *FIELDS, "--skip-bad") == 0
    manifest = load_manifest(tars)
    assert manifest.splits["train"].num_samples == 6 + 2
    assert (manifest.source["read"], manifest.source["kept"]) == (11 + 10, 13)
    assert manifest.source["dropped"] == {
        "sample of a tar does not fit": 3,
        "unreadable image": 1,
        "truncated image": 1,
        "missing label": 1,
        "text too long": 1,
        "id twice": 1,
    }
    lines = rejected_lines(tars)
    assert [line["source_id"] for line in lines] == [
        *(f"train-b.tar:{number}" for number in (1, 2, 3, 4, 5, 6, 8)),
        "part/0000",
    ]
    assert "is an HTML page; accepted are" in lines[1]["detail"]
    assert main(["verify", str(tars), "--quiet", "--workers", "1"]) == 0
    reader = SplitReader(tars, manifest, "train", class_map(["glad", "sad"], None))
    assert [reader.read(1, row).key for row in range(2)] == ["part/0020", "part/0021"]
    content = (tars / "train-b.tar").read_bytes()
    (tars / "train-b.tar").write_bytes(content.replace(b"caption 21", b"caption 12"))
    with pytest.raises(ShardDamage, match=r"or leave it out: .* --overwrite --skip-bad"):
        reader.read(1, 1)
    # Where none fits, something else is wrong.
    write_tar(tars / "train-c.tar", [foreign(50, json="{}"), foreign(51, json="{}")])
    assert run(tars, *FIELDS, "--skip-bad", "--overwrite") == 2
    assert "train-c.tar: none of its 2 samples fits; the first: it holds" in capsys.readouterr().err


def test_what_webdataset_skips_is_skipped(tmp_path: Path) -> None:
    """Also between the members of a sample, where the Mac's tar puts its own."""
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("__index__", "__meta__/a.txt", "LICENSE", ".DS_Store"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        for number in range(3):
            for field, content in (("jpg", jpeg(number)), ("txt", b"a"), ("cls", b"glad")):
                for name in (f"d/._k{number}.{field}", f"d/k{number}.{field}", f"d/k{number}"):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    assert run(tmp_path) == 0
    manifest = load_manifest(tmp_path)
    reader = SplitReader(tmp_path, manifest, "train", class_map(["glad", "sad"], None))
    assert [reader.read(0, row).key for row in range(len(reader))] == ["d/k0", "d/k1", "d/k2"]
    assert reader.read(0, 1).image == jpeg(1)
    assert main(["verify", str(tmp_path), "--quiet", "--workers", "1"]) == 0
    stock = wds.WebDataset([str(path)], shardshuffle=False, empty_check=False)
    assert {f"d/k{n}" for n in range(3)} <= {sample["__key__"] for sample in stock}


@pytest.mark.parametrize(
    ("folder", "name", "options", "message"),
    [
        ("set", "train-10:00.tar", [], "'train-10:00.tar' in "),
        ("set", "._train.tar", [], "'._train.tar' in "),
        ("set", "train-\udcff.tar", [], "'train-\\udcff.tar' in "),
        ("set-\udcff", "train.tar", [], '"dataset": "set-\\udcff"'),
        ("set", "train.tar", ["--split", "train=*", "--split", "val=\udcff"], '"val": "\\udcff"'),
    ],
)
def test_names_that_no_manifest_can_have(
    tmp_path: Path,
    folder: str,
    name: str,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    sample = {"__key__": "a", "jpg": jpeg(1), "txt": "text", "cls": "glad"}
    write_tar(directory / name, [sample])
    assert run(directory, *options) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in directory.iterdir()] == [name]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("start", ["", "long" * 30])
def test_keys_that_are_not_utf_8(
    tmp_path: Path, form: int, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if start and form == tarfile.USTAR_FORMAT:
        start = "folder/" * 16  # the most that its headers hold
    with tarfile.open(tmp_path / "train.tar", "w", format=form) as tar:
        for key in ("a", f"{start}\udcff"):
            for field, content in (("cls", b"glad"), ("jpg", jpeg(1)), ("txt", b"text")):
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert run(tmp_path) == 2
    assert "train.tar: sample 1 does not fit: 'utf-8' codec can't" in capsys.readouterr().err
    assert run(tmp_path, "--skip-bad") == 0
    assert load_manifest(tmp_path).splits["train"].num_samples == 1
    assert main(["verify", str(tmp_path), "--quiet", "--workers", "1"]) == 0


def test_an_interrupted_index_is_no_set(
    tars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never the old manifest with some of the new indexes."""
    assert run(tars, *FIELDS) == 0
    before = digests(tars)
    replace, left = os.replace, [2]

    def interrupted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    other = [*FIELDS, "--classes", "sad,glad", "--overwrite"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(tars, *other) == 2
    assert digests(tars) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert run(tars, *other) == 130
    after = digests(tars)
    assert sum(after.get(name) != before[name] for name in before) == 3  # two and the manifest
    assert sorted(after) == sorted(before.keys() - {"manifest.json"})
    assert run(tars, *other) == 0
    assert load_manifest(tars).classes == ("sad", "glad")
    assert main(["verify", str(tars), "--quiet", "--workers", "1"]) == 0
    (tars / "train-a.idx").unlink()
    (tars / "train-a.idx").mkdir()  # which no file can replace
    capsys.readouterr()
    assert run(tars, *other) == 2
    assert f"error: the index of {tars} cannot be written: [Errno 21]" in capsys.readouterr().err
    assert not list(tars.glob(".*"))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("linked", [("jpg",), ("cls",), ("txt",), ("cls", "jpg", "txt")])
def test_a_link_is_not_a_file(
    tmp_path: Path, kind: bytes, linked: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """GNU tar writes a file with two names once, and then a link: perhaps into another sample."""
    latest = tarfile.TarInfo("latest")  # of no sample
    latest.type, latest.linkname = kind, "a.jpg"
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for key in "abc":
            for field, content in (("cls", b"glad"), ("jpg", jpeg(1)), ("txt", b"text")):
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(content)
                if key == "b" and field in linked:  # some programs write the target's size
                    info.type, info.linkname = kind, f"a.{field}"
                tar.addfile(info, io.BytesIO(content) if info.isfile() else None)
                tar.addfile(latest)
    name = f"b.{linked[0]}"
    message = f"sample 1 does not fit: the member {name} is a link to a.{linked[0]}, and samples"
    assert run(tmp_path, "--keep-missing", "text,image") == 2
    assert message in capsys.readouterr().err
    assert run(tmp_path, "--skip-bad") == 0
    assert load_manifest(tmp_path).splits["train"].num_samples == 2
    (line,) = rejected_lines(tmp_path)
    assert f"the member {name} is a link" in line["detail"]
    assert main(["verify", str(tmp_path), "--quiet", "--workers", "1"]) == 0


def test_dots_in_keys_are_named_and_messages_are_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        {"__key__": f"tweet.{number:04d}", "jpg": jpeg(number), "txt": "a", "cls": "glad"}
        for number in range(500)
    ]
    write_tar(tmp_path / "train.tar", samples)
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "and 1,494 more and no image (jpg, jpeg" in error
    assert (
        "A key ends at its first dot: in 'tweet.0000.jpg' the extension is '0000.jpg'. Rename the "
        "members, without dots in keys"
    ) in error
    assert len(error) < 1000
    write_tar(tmp_path / "train.tar", [{"__key__": "k" * 5000, "cls": "glad", "md": "a"}])
    assert run(tmp_path) == 2
    assert len(capsys.readouterr().err) < 1000


def test_a_joined_tar_is_warned_of(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = (tars / "train-a.tar").read_bytes()
    (tars / "train-a.tar").write_bytes(first + (tars / "validation.tar").read_bytes())
    size = (tars / "validation.tar").stat().st_size
    assert main(["index", str(tars), "--workers", "1", *FIELDS]) == 0
    warning = (
        f"train-a.tar goes on behind its end mark: {size:,} bytes, from byte {len(first):,} on, "
        "are not read."
    )
    assert f"warning: {warning}" in capsys.readouterr().out
    manifest = load_manifest(tars)
    assert manifest.splits["train"].num_samples == 6
    assert [said.startswith(warning) for said in manifest.source["facts"]["warnings"]] == [True]
    assert run(tars, *FIELDS, "--overwrite") == 0
    assert f"warning: {warning}" in capsys.readouterr().err
    (tars / "train-a.tar").write_bytes(first + bytes(10_240))  # zeros: as tar pads it
    assert run(tars, *FIELDS, "--overwrite") == 0
    assert "warning" not in capsys.readouterr().err


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(share=st.floats(0.1, 0.99))
def test_a_cut_tar_is_told_as_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    path = tmp_path / "train.tar"
    write_tar(path, [foreign(number) for number in range(4)])
    content = path.read_bytes()
    whole = len(content.rstrip(b"\0"))  # what follows is the end mark
    path.write_bytes(content[: int(share * whole)])
    code = run(tmp_path, *FIELDS, "--overwrite", "--split", "train=*.tar")
    error = capsys.readouterr().err
    assert ("train.tar is cut: it ends at byte" in error) == (code == 2 and "not fit" not in error)
    if code == 0:
        assert "train.tar has no end mark: members behind 'part/000" in error


def test_a_damaged_header_ends_nothing_silently(
    tars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((tars / "train-a.tar").read_bytes())
    with tarfile.open(tars / "train-a.tar") as tar:
        place = tar.getmembers()[8].offset
    content[place : place + 512] = b"\x55" * 512
    (tars / "train-a.tar").write_bytes(content)
    assert run(tars, *FIELDS) == 2
    assert f"train-a.tar is damaged at byte {place:,}" in capsys.readouterr().err


def test_a_mark_before_a_class_is_no_part_of_it(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"k{n}", "cls": b"\xef\xbb\xbfglad" * (n % 2) or b"glad", "jpg": jpeg(n)}
        | {"txt": "a"}
        for n in range(2)
    ]
    write_tar(tmp_path / "train.tar", samples)
    assert run(tmp_path) == 0
    assert load_manifest(tmp_path).splits["train"].classes == {"glad": 2}


@pytest.mark.parametrize("form", ["AVIF", "TIFF"])
def test_types_that_were_added_later(tmp_path: Path, form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 2, 3)).save(buffer, form)
    write_tar(
        tmp_path / "train.tar",
        [{"__key__": "a", "cls": "glad", form.lower(): buffer.getvalue(), "txt": "a"}],
    )
    assert run(tmp_path) == 0
    manifest = load_manifest(tmp_path)
    usual = ["jpg", "jpeg", "png", "webp", "gif", "bmp"]
    assert manifest.packing["fields"]["image"] == [*usual, form.lower()]
    reader = SplitReader(tmp_path, manifest, "train", class_map(["glad", "sad"], None))
    assert abs(int(image_views.decode(reader.read(0, 0).image)[0, 5, 5]) - 200) < 9
    write_tar(tmp_path / "train.tar", [foreign(1, txt="a", cls="glad")])
    assert run(tmp_path, "--overwrite") == 0
    assert load_manifest(tmp_path).packing["fields"]["image"] == usual


def test_limits_may_be_set(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caption = json.dumps({"caption": "x" * 65_537, "mood": "sad"})
    write_tar(tars / "train-b.tar", [foreign(20, json=caption), foreign(21, jpeg=jpeg(1)[:-100])])
    assert run(tars, *FIELDS, "--max-characters", "0") == 2
    assert "--max-characters 0 must be at least 1" in capsys.readouterr().err
    assert run(tars, *FIELDS, "--max-characters", "65537", "--no-decode") == 0
    manifest = load_manifest(tars)
    assert manifest.source["facts"] == {"max_characters": 65_537}
    assert main(["verify", str(tars), "--quiet", "--no-decode"]) == 0
    assert main(["verify", str(tars), "--quiet"]) == 1
    assert "part/0021: its image does not decode (truncated image)" in capsys.readouterr().out


def test_a_named_pipe_is_not_waited_for(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tars / "train-pipe.tar")
    assert run(tars, *FIELDS) == 2
    error = capsys.readouterr().err
    assert "train-pipe.tar cannot be read (it is a named pipe, expected a file)" in error


def test_what_is_indexed_is_what_training_decodes(tmp_path: Path) -> None:
    """A JPEG with stray bytes between its segments: the fast decoder calls it damaged."""
    stray = jpeg(1).replace(b"\xff\xda", b"\0\0\xff\xda", 1)
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(stray)
    sample = {"__key__": "k", "cls": "glad", "jpg": stray, "txt": "a"}
    write_tar(tmp_path / "train.tar", [sample])
    assert run(tmp_path) == 0
    manifest = load_manifest(tmp_path)
    reader = SplitReader(tmp_path, manifest, "train", class_map(["glad", "sad"], None))
    shown = image_views.decode(reader.read(0, 0).image)
    assert torch.equal(shown, image_views.decode(jpeg(1)))


def test_members_of_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [
        {"__key__": f"k{n}", "Photo.JPG": jpeg(n), "meta.json": json.dumps({"said": f"a {n}"})}
        | {"info.json": json.dumps({"mood": "glad"}), "json": "{}"}
        for n in range(3)
    ]
    write_tar(tmp_path / "train.tar", samples)
    fields = ["--image-field", "photo.jpg", "--text-field", "meta.json:said"]
    assert run(tmp_path, *fields, "--label-field", "info.json:mood") == 0
    manifest = load_manifest(tmp_path)
    assert manifest.splits["train"].classes == {"glad": 3}
    reader = SplitReader(tmp_path, manifest, "train", class_map(["glad", "sad"], None))
    assert reader.read(0, 2).text == "a 2"
    assert main(["leaks", str(tmp_path)]) == 2
    assert "were indexed and their samples not compared" in capsys.readouterr().err


def test_a_set_packed_here_is_not_indexed(
    small_packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_manifest(small_packed)
    assert run(small_packed, "--overwrite") == 2
    assert "was made by python -m shards pack" in capsys.readouterr().err
    assert load_manifest(small_packed) == before


def test_the_table_of_info_is_whole_in_80_columns(
    small_packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(small_packed)]) == 0
    table = capsys.readouterr().out.partition("several splits\n")[2].partition("next: ")[0]
    assert re.search(r"100 %\s+mean", table)
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_info_as_json_and_page(
    small_packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "info.html"
    assert main(["info", str(small_packed), "--json", "--html", str(page)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["train"]["classes"] == {"negative": 5, "neutral": 3, "positive": 8}
    assert facts["distributions"]["picture width, pixels"]["quantiles"]["50"] == 40.0
    lengths = facts["distributions"]["text length, characters"]
    assert lengths["quantiles"]["0"] == 14.0  # "tweet number 1"
    assert lengths["quantiles"]["100"] == 15.0
    assert sum(lengths["histogram"]["counts"]) == 20
    assert facts["duplicates"]["groups_in_several_splits"] >= 0
    content = page.read_text(encoding="utf-8")
    assert content.count("<svg") == len(facts["distributions"]) == 4
    assert "<td>train</td><td>5</td><td>3</td><td>8</td><td>16</td>" in content
    assert "<script" not in content
    capsys.readouterr()
    assert main(["info", str(small_packed), "--html", str(tmp_path)]) == 2
    assert "cannot be written (Is a directory)" in capsys.readouterr().err


def test_the_data_card(small_packed: Path) -> None:
    import yaml

    _, front, body = (small_packed / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["license"] == "other"
    assert card["size_categories"] == ["n<1K"]
    assert card["configs"][0]["data_files"] == [
        {"split": "train", "path": "train-*.tar"},
        {"split": "validation", "path": "val-*.tar"},
        {"split": "test", "path": "test-*.tar"},
    ]
    assert "| train | 5 | 3 | 8 | 16 | 3 |" in body
    assert "| dropped: labels conflict | 2 |" in body
    assert "niu2016mvsa" in body
    assert "CIKM 2017" in body
    # A line right below a table would be a row of it.
    assert "| dropped: labels conflict | 2 |\n\nLabel rule: `fused`" in body
    assert load_manifest(small_packed).digest in body
