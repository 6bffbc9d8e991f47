"""The files that describe a packed data set: `manifest.json` and an index file next to each tar.

docs/shard-format.md describes both formats for other programs. Packing writes these files; the
stream and all reports read them. Nothing here decodes a sample.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.errors import ShardDamage, UserError
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.regular_file import read_regular
from mmsa.foundation.relative_paths import where_it_was_looked_for

MANIFEST_NAME = "manifest.json"
FORMAT = "mmsa-shards"
VERSION = 1

INDEX_MAGIC = b"MMSA-IDX"
INDEX_VERSION = 1
# magic, version, bytes per record, records, bytes of the tar, sha256 of the tar: 64 bytes
_INDEX_HEADER = struct.Struct("<8sIIQQ32s")

# One record per sample, in tar order, little-endian whatever the machine: 40 bytes.
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # of the sample's first tar header, bytes from the start of the tar
        ("key_hash", "<u8"),  # key_hash(key)
        ("group", "<u8"),  # key_hash of the first key of its duplicate group; its own when alone
        ("length", "<u4"),  # bytes of all its members with headers and padding: one read gets it
        ("crc32", "<u4"),  # zlib.crc32 of those bytes
        ("text_length", "<u4"),  # characters of its text
        ("label", "<u2"),  # position in the manifest's `classes`
        ("reserved", "<u2"),  # 0
    ]
)
IndexArray = np.ndarray[Any, np.dtype[np.void]]


# A pattern, because pathlib would take most of the time of loading 100,000 shards.
_PLAIN_NAME = re.compile(r"[^./:\0][^/:\0]*")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardInfo(_Strict):
    """One tar and its index: names relative to the manifest, sizes in bytes, digests in hex."""

    tar: str
    tar_bytes: NonNegativeInt
    tar_sha256: Sha256
    index: str
    index_sha256: Sha256
    num_samples: NonNegativeInt
    classes: dict[str, NonNegativeInt]

    @field_validator("tar", "index")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # A manifest may come from a stranger. Refuse names that leave the folder and names that
        # webdataset would run as a command ("pipe:...").
        if not _PLAIN_NAME.fullmatch(name):
            raise ValueError(f"'{name}' is not a plain file name")
        return name


class SplitInfo(_Strict):
    """The shards of one split, in the order in which they were packed."""

    num_samples: NonNegativeInt
    classes: dict[str, NonNegativeInt]
    shards: tuple[ShardInfo, ...]


class ProtocolInfo(_Strict):
    """The named rule for labels and splits, its settings, and the hash of the resulting split.

    `hash` is over the sorted (split, key) pairs: two packed sets with equal hashes have the same
    samples in the same splits.
    """

    name: str
    version: int
    settings: dict[str, Any]
    hash: str


class Manifest(_Strict):
    """`manifest.json`. `digest` is the sha256 of everything else in it, as canonical JSON."""

    format: Literal["mmsa-shards"] = "mmsa-shards"
    version: Literal[1] = 1
    dataset: str
    classes: tuple[str, ...]
    label_rule: str
    protocol: ProtocolInfo
    source: dict[str, Any] = Field(description="samples read, kept, and dropped by reason")
    packing: dict[str, Any] = Field(description="image and text settings; versions of the encoders")
    splits: dict[str, SplitInfo]
    digest: str = ""

    def computed_digest(self) -> str:
        return _digest(self.model_dump(mode="json"))

    def sealed(self) -> Manifest:
        """A copy with its digest filled in."""
        return self.model_copy(update={"digest": self.computed_digest()})

    @property
    def has_soft_labels(self) -> bool:
        """Whether `key.json` holds the annotators' shares of each class as `soft_label`."""
        return self.label_rule.rpartition("-")[2] == "soft"

    @property
    def max_characters(self) -> int:
        """The most characters that a text may have: the usual limit, or that of its packing."""
        facts = self.source.get("facts")
        limit = facts.get("max_characters") if isinstance(facts, dict) else None
        return limit if isinstance(limit, int) else MAX_CHARACTERS

    def split(self, name: str) -> SplitInfo:
        """The split `name`; raises `UserError` if the data set does not have it."""
        if name not in self.splits:
            raise UserError(
                f"the shards have no split '{name}'; they have: {', '.join(self.splits) or 'none'}"
            )
        return self.splits[name]


def _digest(content: dict[str, Any]) -> str:
    """The sha256 of a manifest's content without its digest, as canonical JSON."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` with its digest as `directory/manifest.json`; returns what was written."""
    sealed = manifest.sealed()
    (directory / MANIFEST_NAME).write_bytes(manifest_text(sealed).encode("utf-8"))
    return sealed


def manifest_text(manifest: Manifest) -> str:
    """The exact text of `manifest.json`."""
    return json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check `directory/manifest.json`.

    Raises `UserError` if it is missing, of another format or version, or does not match its own
    digest. No tar or index is opened.
    """
    with _uncollected():
        return _load(Path(directory) / MANIFEST_NAME)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Suspend garbage collection, which takes a third of the time of loading a million objects."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(path: Path) -> Manifest:
    try:
        content = parse_json(read_regular(path).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        hint = "" if path.parent.exists() else where_it_was_looked_for(path.parent)
        raise UserError(
            f"{path.parent} is not a shards directory: it has no {MANIFEST_NAME}{hint}. "
            "Make one with: python -m shards pack SOURCE RAW OUT"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); pack the data again") from None
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (FORMAT, VERSION):
        raise UserError(
            f"{path} has format and version {found}; this program reads {(FORMAT, VERSION)}. "
            "Pack the data again with this version's `python -m shards pack`"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path} does not fit its format: {place}: {first['msg']}; pack the data again"
        ) from None
    # The digest is over the file's own content, not over the model: a value that the model would
    # accept as equal (1.0 for 1) is a change too.
    found_digest = _digest(content)
    if manifest.digest != found_digest:
        raise UserError(
            f"{path} was changed after packing: its digest is {found_digest[:12]}, "
            f"it says {manifest.digest[:12]}. Restore it or pack the data again"
        )
    _refuse_repetition(path, manifest)
    return manifest


def _refuse_repetition(path: Path, manifest: Manifest) -> None:
    """Raise `UserError` where a file is listed twice, or two tars of samples are the same bytes.

    Training would see those samples twice in an epoch, or be validated on them.
    """
    place_of: dict[str, str] = {}
    for split, info in manifest.splits.items():
        for shard in info.shards:
            place = f"{shard.tar} in {split}"
            names = [shard.tar, shard.index]
            if shard.num_samples:  # tars without samples are alike
                names.append(shard.tar_sha256)
            for name in names:
                first = place_of.setdefault(name, place)
                if first is not place:
                    raise UserError(
                        f"{path} lists the same samples twice: as {first} and as {place}. Each "
                        "sample must be in one split, once; pack or index the data again"
                    )


def key_hash(key: str) -> int:
    """The 64-bit hash of a key in the index: the first 8 bytes of its sha256, little-endian."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "little")


def index_bytes(records: IndexArray, *, tar_bytes: int, tar_sha256: str) -> bytes:
    """The content of an index file for `records` (N,) of `INDEX_DTYPE`, in tar order."""
    assert records.dtype == INDEX_DTYPE, records.dtype
    header = _INDEX_HEADER.pack(
        INDEX_MAGIC,
        INDEX_VERSION,
        INDEX_DTYPE.itemsize,
        len(records),
        tar_bytes,
        bytes.fromhex(tar_sha256),
    )
    return header + records.tobytes()


def read_index(directory: str | os.PathLike[str], shard: ShardInfo) -> IndexArray:
    """Read the index of `shard` whole, (num_samples,) of `INDEX_DTYPE`, and check it.

    It is not memory-mapped, because a file truncated on a network file system would cause SIGBUS.
    Raises `ShardDamage` if it is missing, changed, or made for another tar.
    """
    path = os.path.join(directory, shard.index)

    def damage(what: str) -> ShardDamage:
        return ShardDamage(
            f"the index {path} {what}. Restore it, or pack the data again", shard=shard.tar
        )

    try:
        content = read_regular(path)
    except OSError as error:
        raise damage(f"cannot be read ({error.strerror or error})") from None
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise damage("does not match the manifest's sha256: it is damaged or of other shards")
    if len(content) < _INDEX_HEADER.size:
        raise damage("is shorter than its header")
    magic, version, record_bytes, count, tar_bytes, tar_sha256 = _INDEX_HEADER.unpack_from(content)
    expected_size = _INDEX_HEADER.size + shard.num_samples * INDEX_DTYPE.itemsize
    if magic != INDEX_MAGIC or version != INDEX_VERSION or record_bytes != INDEX_DTYPE.itemsize:
        raise damage(f"has version {version} and {record_bytes} bytes per record")
    if count != shard.num_samples or len(content) != expected_size:
        raise damage(f"holds {count} records; the manifest says {shard.num_samples}")
    if tar_bytes != shard.tar_bytes or tar_sha256.hex() != shard.tar_sha256:
        raise damage("was made for another tar")
    return np.frombuffer(content, dtype=INDEX_DTYPE, offset=_INDEX_HEADER.size)
