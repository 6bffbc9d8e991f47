"""What contradicts a manifest in the names, counts and files of its set; no tar is opened."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmsa.data.manifest import MANIFEST_NAME, Manifest, Modality, manifest_bytes, manifest_text
from mmsa.data.storage.files import CachedFiles, LocalFiles
from mmsa.data.storage.sources import StoreError
from shards.reports.dropped import REJECTED_NAME


def manifest_faults(
    directory: Path | str, files: LocalFiles | CachedFiles, manifest: Manifest
) -> Iterator[str]:
    """A sentence for each fault of the set in `directory`, whose `files` are listed."""
    path = Path(MANIFEST_NAME)
    # The digest does not cover the layout of the file; its bytes must be those that are written.
    if manifest_bytes(directory) != manifest_text(manifest).encode("utf-8"):
        yield f"{path.name} has the right content, but not the bytes that packing wrote"
    listed: set[str] = set()
    for name, split in manifest.splits.items():
        counts: Counter[str] = Counter()
        for shard in split.shards:
            counts.update(shard.classes)
            if sum(shard.classes.values()) != shard.num_samples:
                yield f"{path.name}: the classes of {shard.tar} do not sum to its samples"
            listed |= {shard.tar, shard.index}
        if sum(shard.num_samples for shard in split.shards) != split.num_samples:
            yield f"{path.name}: the shards of {name} do not sum to its {split.num_samples} samples"
        missing: Counter[Modality] = Counter()
        for shard in split.shards:
            missing.update(shard.missing)
        if missing != Counter(split.missing):
            yield f"{path.name}: the missing of the shards of {name} do not sum to its own"
        if counts != Counter(split.classes):
            yield f"{path.name}: the classes of the shards of {name} do not sum to its own"
    for extra in sorted(files.names()):
        if extra.endswith((".tar", ".idx")) and extra not in listed:
            yield f"{extra} is not in {path.name}: a reader of *.tar would take it for a shard"
    expected = manifest.source.get("rejected_sha256")
    if expected is not None:
        try:
            found = hashlib.sha256(files.read_unlisted(REJECTED_NAME)).hexdigest()
        except OSError as error:
            yield f"{REJECTED_NAME} cannot be read ({error.strerror})"
        except StoreError as error:
            yield f"{REJECTED_NAME} cannot be read ({error})"
        else:
            if found != expected:
                yield f"{REJECTED_NAME} was changed after packing"
