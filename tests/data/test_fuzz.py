"""Random damage to tars, indexes and manifests: each is an error or harmless.

Harmless: every sample is what was packed. Never another exception, a hang, or a sample that is
silently another one.
"""

from __future__ import annotations

import random
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
from damage import replace_index, replace_records
from packed import SIZES, open_split

from mmsa.data.decoding.image_views import decode
from mmsa.data.index_file import INDEX_DTYPE, read_index
from mmsa.data.manifest import load_manifest
from mmsa.data.members import Fields, packed_sample, sample_of, tar_members
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.errors import ShardDamage, UserError

SHARD = 2  # twelve samples
# A damage that leads in circles would end here instead of after the suite's own limit.
pytestmark = pytest.mark.timeout(240)
FEW, MANY = 1500, 30_000


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to three changes: bits, runs of bytes, digits, cuts, insertions, moved blocks."""
    found = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            run = rng.randbytes(rng.randrange(1, 64))
            found[at : at + len(run)] = run
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            del found[at : at + rng.randrange(1, 1024)]
        elif kind == 4:
            found[at:at] = rng.randbytes(rng.randrange(1, 600))
        elif kind == 5:
            found[at : at + 512] = bytes(len(found[at : at + 512]))
        elif kind == 6:
            block, other = at // 512 * 512, rng.randrange(len(found) // 512 + 1) * 512
            found[block : block + 512] = found[other : other + 512]
        else:  # the size field of a header, with what a reader may stumble over
            field = at // 512 * 512 + 124
            found[field : field + 12] = bytes(rng.choices(b"+-_ 01234567\0\x80\xff", k=12))
        if not found:
            break
    return bytes(found)


def originals(directory: Path) -> list[RawSample]:
    reader = open_split(directory, load_manifest(directory))
    return [reader.read(SHARD, row) for row in range(SIZES[SHARD])]


def errors_or_originals(reader: SplitReader, expected: list[RawSample]) -> int:
    """Read a shard; returns how many samples were refused."""
    refused = 0
    for row, sample in enumerate(expected):
        try:
            found = reader.read(SHARD, row)
        except ShardDamage:
            refused += 1
        else:
            assert found == sample
    return refused


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "set"))


def rounds(number: int) -> list[object]:
    return [number, pytest.param(number * (MANY // FEW), marks=pytest.mark.soak)]


@pytest.mark.parametrize("number", rounds(FEW))
def test_damaged_tars(copied: Path, number: int) -> None:
    expected, rng, refused = originals(copied), random.Random(1), 0
    manifest = load_manifest(copied)
    tar = copied / manifest.splits["train"].shards[SHARD].tar
    content = tar.read_bytes()
    for _ in range(number):
        tar.write_bytes(damaged(content, rng))
        refused += errors_or_originals(open_split(copied, manifest), expected)
    assert refused > number


@pytest.mark.parametrize("number", rounds(FEW))
def test_damaged_indexes(copied: Path, number: int) -> None:
    expected, rng, refused = originals(copied), random.Random(2), 0
    manifest = load_manifest(copied)
    index = copied / manifest.splits["train"].shards[SHARD].index
    content = index.read_bytes()
    for _ in range(number):
        index.write_bytes(damaged(content, rng))
        refused += errors_or_originals(open_split(copied, manifest), expected)
    assert refused > number


@pytest.mark.parametrize("number", rounds(400))
def test_damaged_indexes_whose_checksum_agrees(copied: Path, number: int) -> None:
    """As a faulty program would write them: the manifest vouches for the damage."""
    expected, rng, refused = originals(copied), random.Random(3), 0
    shard = load_manifest(copied).splits["train"].shards[SHARD]
    content = (copied / shard.index).read_bytes()
    records = read_index(copied, shard)
    # Not the duplicate group: no reading depends on it.
    fields = [name for name in INDEX_DTYPE.names or () if name != "group"]
    for turn in range(number):
        if turn % 2:
            changed = records.copy()
            field = rng.choice(fields)
            width = 8 * INDEX_DTYPE[field].itemsize
            value = rng.choice([0, 1, 512, rng.getrandbits(width), (1 << width) - 1])
            changed[field][rng.randrange(len(changed))] = value
            manifest = replace_records(copied, "train", SHARD, changed)
        else:
            manifest = replace_index(copied, "train", SHARD, damaged(content, rng))
        refused += errors_or_originals(open_split(copied, manifest), expected)
    assert refused > number // 2


@pytest.mark.parametrize("number", rounds(400))
def test_damaged_samples_whose_checksum_agrees(copied: Path, number: int) -> None:
    """As a faulty program would pack them: an error, or a sample of that key and label."""
    expected, rng, refused = originals(copied), random.Random(4), 0
    shard = load_manifest(copied).splits["train"].shards[SHARD]
    tar, records = copied / shard.tar, read_index(copied, shard)
    content = tar.read_bytes()
    for _ in range(number):
        row = rng.randrange(len(records))
        start, length = int(records[row]["offset"]), int(records[row]["length"])
        wrong = damaged(content[start : start + length], rng)[:length].ljust(length, b"\0")
        tar.write_bytes(content[:start] + wrong + content[start + length :])
        changed = records.copy()
        changed["crc32"][row] = zlib.crc32(wrong)
        reader = open_split(copied, replace_records(copied, "train", SHARD, changed))
        try:
            found = reader.read(SHARD, row)
        except ShardDamage:
            refused += 1
            continue
        assert (found.key, found.label) == (expected[row].key, expected[row].label)
        try:
            assert decode(found.image).shape[0] == 3
        except ValueError:
            refused += 1
    assert refused > number // 4


@pytest.mark.parametrize("number", rounds(20_000))
@pytest.mark.parametrize("optional", [(), ("text",), ("image",), ("text", "image")])
def test_the_short_way_to_a_sample_is_the_same_or_leaves_it_to_the_long_one(
    tiny: Path, number: int, optional: tuple[str, ...]
) -> None:
    rng, short, fields = random.Random(6), 0, Fields(optional=frozenset(optional))
    shard = load_manifest(tiny).splits["train"].shards[SHARD]
    content, records = (tiny / shard.tar).read_bytes(), read_index(tiny, shard)
    places = zip(records["offset"], records["length"], strict=True)
    pieces = [content[at : at + length] for at, length in places]
    assert all(packed_sample(piece) for piece in pieces)
    changed = [piece.replace(b".jpg\0", b".png\0", 1) for piece in pieces]
    assert not any(packed_sample(piece) for piece in changed)
    for _ in range(number):
        wrong = headers_damaged(rng.choice(pieces), rng)
        try:
            found = packed_sample(wrong)
        except ValueError:
            with pytest.raises((ValueError, tarfile.TarError)):
                sample_of(tar_members(wrong), fields)
            continue
        if found is not None:
            short += 1
            assert found == sample_of(tar_members(wrong), fields)
    assert number // 10 < short < number * 0.9


def headers_damaged(piece: bytes, rng: random.Random) -> bytes:
    """Where it matters most: one byte in the first bytes of a block, or as `damaged` does."""
    if rng.random() < 0.1:
        return damaged(piece, rng)
    found = bytearray(piece)
    block = rng.randrange(len(found) // 512) * 512
    found[block + rng.choice([*range(24), *range(120, 160), 345, 400])] = rng.choice(
        [*b"\0 0178./_a\xc3\xff", rng.randrange(256)]
    )
    return bytes(found)


@pytest.mark.parametrize("number", rounds(600))
def test_damaged_manifests(copied: Path, number: int) -> None:
    path, rng, refused = copied / "manifest.json", random.Random(5), 0
    expected, content = load_manifest(copied), path.read_bytes()
    for _ in range(number):
        path.write_bytes(damaged(content, rng))
        try:
            found = load_manifest(copied)
        except UserError:
            refused += 1
        else:
            assert found == expected
    assert refused > number * 0.9


def header(size: bytes) -> bytes:
    """A member's header with a checksum that agrees, for one with `size` as its size field."""
    parts = [b"a.txt".ljust(100, b"\0"), b"0000644\0" * 3, size.ljust(12, b"\0"), b"0" * 12]
    before, behind = b"".join(parts), b"0" + bytes(355)
    checksum = sum(before) + 8 * ord(" ") + sum(behind)
    return before + b"%06o\0 " % checksum + behind


@pytest.mark.parametrize(
    "size",
    [
        *[b"-1000", b"-0000001000", b"+7", b"1_0", b"9", b"77777777777"],
        *[b"\x80" + bytes(11), b"\xff" * 12, b"\xff" * 10 + b"\xfc\0", b"\x80" + b"\xff" * 11],
    ],
)
def test_sizes_that_lead_nowhere(size: bytes) -> None:
    """Some of them lead the standard library's reader in circles."""
    content = header(size) + header(b"0") + bytes(512)
    assert len(content) == 1536
    try:
        members = tar_members(content)
    except (ValueError, OverflowError, tarfile.TarError):
        return
    assert all(len(data) <= 1024 for _, data in members)
