"""Upload a packed set to a store: the manifest last, so that a set there is whole or absent.

Files of another set often have the same size, as indexes do. So files that are in the way are
removed first, and then a marker at the store names the set: an interrupted upload that finds its
marker continues, and takes what is there with its size as sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mmsa.data.manifest import MANIFEST_NAME, Manifest, load_manifest, parse_manifest
from mmsa.data.storage.files import read_manifest
from mmsa.data.storage.sources import StoreError
from mmsa.data.storage.store import Store
from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.urls import is_url, joined, url_problem
from mmsa.process.progress import Progress
from shards.reports.card import CARD_NAME
from shards.reports.dropped import REJECTED_NAME

MARKER_NAME = "push-in-progress.json"
_AT_ONCE = 8  # uploads
_WRITABLE = ("s3://", "gs://", "az://")


def check_writable(url: str) -> None:
    """Raise `UserError` for a URL that nothing can be uploaded to."""
    problem = url_problem(url) if is_url(url) else "it is not a URL"
    if not problem and not url.startswith(_WRITABLE):
        scheme = url.partition("://")[0]
        problem = f"{scheme}:// is for reading alone; upload to one of {', '.join(_WRITABLE)}"
        if scheme == "hf":
            problem += ", or with: hf upload ORG/NAME OUT --repo-type dataset"
    if problem:
        raise UserError(f"{url.partition('://')[0]}: {problem}" if "@" in url else problem)


def push(directory: Path, url: str, *, overwrite: bool = False, quiet: bool = False) -> int:
    """Upload the set in `directory` to `url`; returns how many files of it were sent.

    An interrupted upload continues: what it has sent is not sent again. With `overwrite` a set that
    is there is replaced by all files, also if it is the same one, whose files may be damaged.
    Raises `UserError`: no set in `directory`, another one at `url` without `overwrite`, an answer
    of the store.
    """
    check_writable(url)
    manifest = load_manifest(directory)
    store = Store(url)
    there = _there(store)
    if MANIFEST_NAME in there and not overwrite:
        if _is_there(store, manifest):
            return 0
        raise UserError(
            f"{url} has another packed set; push to another place, or replace it with --overwrite"
        )
    sizes = _sizes(directory, manifest)
    if MANIFEST_NAME in there or _digest_in_progress(store, there) != manifest.digest:
        # A marker of no set first: none may name files that its upload did not send, and a store
        # that takes nothing now must not lose the set that it has. Then the manifest goes: readers
        # must find the old set or the new one, never some of both.
        store.put(MARKER_NAME, _marker(""))
        for in_the_way in ([MANIFEST_NAME], sizes):
            store.delete(*[name for name in in_the_way if name in there])
        store.put(MARKER_NAME, _marker(manifest.digest))
        there = {}
    names = [name for name, size in sizes.items() if there.get(name) != size]
    with (
        Progress(total=sum(sizes[name] for name in names), what="uploading", quiet=quiet) as bar,
        ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="push") as pool,
    ):
        sent = [pool.submit(store.put, name, directory / name) for name in names]
        try:
            for name, upload in zip(names, sent, strict=True):
                upload.result()
                bar.advance(sizes[name])
        finally:
            for upload in sent:
                upload.cancel()
    _check(store, sizes)
    store.put(MANIFEST_NAME, directory / MANIFEST_NAME)
    with suppress(StoreError):  # the set is whole; next to a manifest a marker means nothing
        store.delete(MARKER_NAME)
    return len(names) + 1


def _there(store: Store) -> dict[str, int]:
    found = store.sizes()
    assert found is not None, store.location
    return found


def _is_there(store: Store, manifest: Manifest) -> bool:
    """Whether the manifest at the store is `manifest`. Raises `StoreError`: a manifest that cannot
    be read now may be of this set."""
    content = read_manifest(store.location, MANIFEST_NAME)
    try:
        return parse_manifest(store.location, content).digest == manifest.digest
    except UserError:  # damaged, or of another version
        return False


def _marker(digest: str) -> bytes:
    return json.dumps({"digest": digest}).encode()


def _digest_in_progress(store: Store, there: dict[str, int]) -> str | None:
    """The digest of the set whose upload was interrupted; None if there was no such upload."""
    if MARKER_NAME not in there:
        return None
    content = b"".join(store.stream(MARKER_NAME))
    try:
        return str(parse_json(content.decode("utf-8"))["digest"])
    except (ValueError, KeyError, TypeError):
        return None


def _sizes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """Bytes of all files of a set but its manifest, the tars first. Raises `UserError`."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [shard.tar for shard in shards] + [shard.index for shard in shards]
    names += [name for name in (REJECTED_NAME, CARD_NAME) if (directory / name).is_file()]
    sizes = {}
    for name in names:
        try:
            sizes[name] = (directory / name).stat().st_size
        except OSError as error:
            raise UserError(
                f"{directory / name} cannot be read ({error.strerror}); pack the data again"
            ) from None
    return sizes


def _check(store: Store, sizes: Mapping[str, int]) -> None:
    """Raise `UserError` where a file did not arrive whole: nothing is announced then."""
    there = _there(store)
    for name, size in sizes.items():
        if there.get(name) != size:
            raise UserError(
                f"{joined(store.location, name)} has {there.get(name, 'no')} bytes after its "
                "upload; the manifest was not written. Push again"
            )
