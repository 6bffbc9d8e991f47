"""The file that describes a packed data set: `manifest.json`. Each tar has an index file, too
(`index_file.py`).

docs/shard-format.md describes both formats for other programs. Packing writes these files; the
stream and all reports read them. Nothing here decodes a sample.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.data.storage.files import read_manifest
from mmsa.data.storage.sources import StoreError
from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.regular_file import read_regular
from mmsa.foundation.relative_paths import where_it_was_looked_for
from mmsa.foundation.urls import is_url, joined

MANIFEST_NAME = "manifest.json"
FORMAT = "mmsa-shards"
# Version 2 has samples that lack a modality. A set without such samples is written as version 1, so
# that its bytes are those of earlier versions of mmsa, which read it.
VERSIONS = (1, 2)

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")

# Of a file in a manifest, which is UTF-8: half a character is a name's byte that is not. A pattern,
# because pathlib would take most of the time of loading 100,000 shards.
PLAIN_NAME = re.compile(r"[^./:\0\ud800-\udfff][^/:\0\ud800-\udfff]*")
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Modality -> number of samples without it. Left out where there are none: only in version 2.
Missing = Annotated[dict[Modality, PositiveInt], Field(exclude_if=lambda counts: not counts)]


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
    missing: Missing = {}

    @field_validator("tar", "index")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # A manifest may come from a stranger. Refuse names that leave the folder and names that
        # webdataset would run as a command ("pipe:...").
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"'{name}' is not a plain file name")
        return name


class SplitInfo(_Strict):
    """The shards of one split, in the order in which they were packed."""

    num_samples: NonNegativeInt
    classes: dict[str, NonNegativeInt]
    shards: tuple[ShardInfo, ...]
    missing: Missing = {}


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
    version: Literal[1, 2] = 1
    dataset: str
    classes: tuple[str, ...]
    label_rule: str
    protocol: ProtocolInfo
    source: dict[str, Any] = Field(description="samples read, kept, and dropped by reason")
    packing: dict[str, Any] = Field(description="image and text settings; versions of the encoders")
    splits: dict[str, SplitInfo]
    digest: str = ""

    @model_validator(mode="after")
    def _version_of_missing(self) -> Manifest:
        if self.version != version_of(self.splits):
            raise ValueError(f"version {self.version} with the missing counts of another version")
        return self

    def computed_digest(self) -> str:
        return _digest(self.model_dump(mode="json"))

    def sealed(self) -> Manifest:
        """A copy with its digest filled in."""
        return self.model_copy(update={"digest": self.computed_digest()})

    def missing(self, *splits: str) -> dict[Modality, int]:
        """Modality -> number of samples without it in `splits` (all by default), where not 0."""
        counts: Counter[Modality] = Counter()
        for name in splits or self.splits:
            counts.update(self.splits[name].missing)
        return {name: counts[name] for name in MODALITIES if counts[name]}

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


def version_of(splits: Mapping[str, SplitInfo]) -> Literal[1, 2]:
    """The version of a manifest of `splits`: 2 where a sample lacks a modality."""
    return 2 if any(split.missing for split in splits.values()) else 1


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


def manifest_bytes(directory: str | os.PathLike[str]) -> bytes:
    """The bytes of a manifest that `load_manifest` has read."""
    if is_url(directory):
        return _from_store(str(directory))
    return read_regular(Path(directory) / MANIFEST_NAME)


def load_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """Read and check `directory/manifest.json`; `directory` may be the URL of a store.

    Raises `UserError` if it is missing, of another format or version, or does not match its own
    digest. No tar or index is opened.
    """
    with _uncollected():
        if is_url(directory):
            return parse_manifest(joined(directory, MANIFEST_NAME), _from_store(str(directory)))
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
        content = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        hint = "" if path.parent.exists() else where_it_was_looked_for(path.parent)
        raise UserError(
            f"{path.parent} is not a shards directory: it has no {MANIFEST_NAME}{hint}. "
            "Make one with: python -m shards pack SOURCE RAW OUT"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); pack the data again") from None
    return parse_manifest(path, content)


def parse_manifest(path: Path | str, content: bytes) -> Manifest:
    """The manifest whose bytes, from `path`, are `content`; raises as `load_manifest` does."""
    return _checked(path, _parsed(path, content))


def _from_store(location: str) -> bytes:
    try:
        return read_manifest(location, MANIFEST_NAME)
    except StoreError as error:
        raise UserError(
            f"{location} cannot be read as packed shards: {error}. A whole set has a "
            f"{MANIFEST_NAME} there, written last by: python -m shards push OUT {location}"
        ) from None


def _parsed(path: Path | str, content: bytes) -> Any:
    try:
        return parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); pack the data again") from None


def _checked(path: Path | str, content: Any) -> Manifest:
    """The manifest of a file's parsed content; raises as `load_manifest` does."""
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    known = [(FORMAT, version) for version in VERSIONS]
    if found not in known:
        raise UserError(
            f"{path} has format and version {found}; this program reads "
            f"{' and '.join(map(str, known))}. "
            "Pack the data again with this version's `python -m shards pack`"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "its content"
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


def _refuse_repetition(path: Path | str, manifest: Manifest) -> None:
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
