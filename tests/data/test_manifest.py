"""The manifest's seal and names, and the checks of an index's header."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import replace_index

from mmsa.data.index_file import INDEX_DTYPE, index_bytes, key_hash, read_index
from mmsa.data.manifest import MANIFEST_NAME, load_manifest, write_manifest
from mmsa.errors import ShardDamage, UserError


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "set"))


def content_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / MANIFEST_NAME).read_text())
    return content


def store(directory: Path, content: object) -> None:
    (directory / MANIFEST_NAME).write_text(json.dumps(content))


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested JSON that are no containers."""
    if isinstance(content, dict):
        return [leaf for key, value in content.items() for leaf in leaves(value, (*path, key))]
    if isinstance(content, list):
        return [leaf for n, value in enumerate(content) for leaf in leaves(value, (*path, n))]
    return [path]


def test_reading_gives_what_was_written(copied: Path) -> None:
    manifest = load_manifest(copied)
    assert manifest.digest == manifest.computed_digest()
    assert len(manifest.digest) == 64
    before = (copied / MANIFEST_NAME).read_bytes()
    assert write_manifest(copied, manifest) == manifest
    assert (copied / MANIFEST_NAME).read_bytes() == before


def test_a_change_of_any_value_is_refused(copied: Path) -> None:
    content = content_of(copied)
    paths = leaves(content)
    assert len(paths) > 50
    for path in paths:
        changed = json.loads(json.dumps(content))
        node = changed
        for part in path[:-1]:
            node = node[part]
        old = node[path[-1]]
        node[path[-1]] = old + 1 if isinstance(old, int) else f"{old}x"
        store(copied, changed)
        with pytest.raises(UserError):
            load_manifest(copied)
    store(copied, content)
    assert load_manifest(copied).dataset == "tiny"


def test_an_altered_manifest_is_told_apart_from_a_wrong_one(copied: Path) -> None:
    content = content_of(copied)
    content["splits"]["train"]["shards"][0]["num_samples"] = 8
    store(copied, content)
    with pytest.raises(UserError, match="digest"):
        load_manifest(copied)


def test_a_number_in_another_spelling_is_a_change(copied: Path) -> None:
    """The digest is taken over the file's own words, as docs/shard-format.md has it."""
    content = content_of(copied)
    shard = content["splits"]["train"]["shards"][0]
    shard["num_samples"] = float(shard["num_samples"])
    store(copied, content)
    with pytest.raises(UserError, match="was changed after packing"):
        load_manifest(copied)


def test_a_lone_surrogate_is_a_change_and_no_crash(copied: Path) -> None:
    content = content_of(copied)
    content["packing"]["image_quality"] = "\ud800"
    (copied / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError):
        load_manifest(copied)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            {"version": 3},
            r"\('mmsa-shards', 3\); this program reads \('mmsa-shards', 1\) and "
            r"\('mmsa-shards', 2\)",
        ),
        ({"version": 2}, "version 2 with the missing counts of another version"),
        ({"format": "other"}, r"\('other', 1\)"),
        ({"version": None}, r"\('mmsa-shards', None\)"),
    ],
)
def test_another_format_or_version_is_refused(
    copied: Path, change: dict[str, Any], found: str
) -> None:
    store(copied, {**content_of(copied), **change})
    with pytest.raises(UserError, match=found):
        load_manifest(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '"text"', "\xff"])
def test_what_is_no_manifest_is_refused(copied: Path, content: str) -> None:
    (copied / MANIFEST_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=MANIFEST_NAME):
        load_manifest(copied)


def test_a_directory_without_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a shards directory.*python -m shards pack"):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../train-00000.tar",
        "/etc/passwd",
        "folder/train-00000.tar",
        "..",
        ".hidden.tar",
        "pipe:cat train-00000.tar",
        "https://example.org/train-00000.tar",
        "C:train.tar",
    ],
)
@pytest.mark.parametrize("field", ["tar", "index"])
def test_a_name_that_leaves_the_folder_or_runs_a_command_is_refused(
    copied: Path, field: str, name: str
) -> None:
    content = content_of(copied)
    content["splits"]["train"]["shards"][0][field] = name
    # Sealed anew: whoever wrote such a name would not forget the digest.
    del content["digest"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    store(copied, content)
    with pytest.raises(UserError, match="is not a plain file name"):
        load_manifest(copied)


def test_an_unknown_split_is_refused_with_those_there_are(tiny: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'; they have: train"):
        load_manifest(tiny).split("test")


def test_key_hashes_are_the_same_everywhere() -> None:
    # sha256("a") begins ca978112ca1bbdca, read little-endian.
    assert key_hash("a") == 0xCABD1BCA128197CA
    assert key_hash("tweet-é") == 0xA3916D4EAFE1EDDF  # of its UTF-8


def test_the_index_record_is_forty_bytes() -> None:
    assert INDEX_DTYPE.itemsize == 40
    records = np.zeros(2, dtype=INDEX_DTYPE)
    records["offset"] = [0, 3072]
    content = index_bytes(records, tar_bytes=10240, tar_sha256="ab" * 32)
    assert len(content) == 64 + 2 * 40
    assert content[:8] == b"MMSA-IDX"
    assert struct.unpack_from("<IIQQ", content, 8) == (1, 40, 2, 10240)
    assert content[32:64] == b"\xab" * 32


@pytest.mark.parametrize(
    ("at", "packed", "complaint"),
    [
        (0, b"MMSA-IDY", "has version 1 and 40 bytes per record"),
        (8, struct.pack("<I", 2), "has version 2"),
        (12, struct.pack("<I", 48), "48 bytes per record"),
        (16, struct.pack("<Q", 6), "holds 6 records; the manifest says 7"),
        (24, struct.pack("<Q", 512), "was made for another tar"),
        (32, b"\0" * 32, "was made for another tar"),
    ],
)
def test_an_index_header_that_does_not_fit_is_refused(
    copied: Path, at: int, packed: bytes, complaint: str
) -> None:
    shard = load_manifest(copied).splits["train"].shards[0]
    content = bytearray((copied / shard.index).read_bytes())
    content[at : at + len(packed)] = packed
    manifest = replace_index(copied, "train", 0, bytes(content))
    with pytest.raises(ShardDamage, match=complaint) as damage:
        read_index(copied, manifest.splits["train"].shards[0])
    assert damage.value.shard == "train-00000.tar"


@pytest.mark.parametrize("length", [0, 63, 64, 64 + 40 * 7 - 1])
def test_a_short_index_is_refused(copied: Path, length: int) -> None:
    shard = load_manifest(copied).splits["train"].shards[0]
    content = (copied / shard.index).read_bytes()[:length]
    manifest = replace_index(copied, "train", 0, content)
    with pytest.raises(ShardDamage, match="shorter than its header|holds 7 records"):
        read_index(copied, manifest.splits["train"].shards[0])
