"""Upload a packed set to a store: the manifest last, so that a set there is whole or absent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmsa.data.manifest import MANIFEST_NAME, Manifest, load_manifest
from mmsa.data.storage.sources import StoreError
from mmsa.data.storage.store import Store
from mmsa.errors import UserError
from mmsa.foundation.urls import is_url, joined, url_problem
from mmsa.process.progress import Progress
from shards.reports.card import CARD_NAME
from shards.reports.dropped import REJECTED_NAME

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
    """Upload the set in `directory` to `url`; returns how many files were sent.

    Files that are there with their size are not sent again, unless another set is being replaced:
    so an interrupted upload continues. Raises `UserError`: no set in `directory`, another one at
    `url` without `overwrite`, an answer of the store.
    """
    check_writable(url)
    manifest = load_manifest(directory)
    store = Store(url)
    there = _there(store)
    earlier = _manifest_there(store, there)
    if earlier is not None and earlier.digest == manifest.digest:
        return 0
    if MANIFEST_NAME in there:
        if not overwrite:
            raise UserError(
                f"{url} has another packed set; push to another place, or replace it with "
                "--overwrite"
            )
        # First: readers must find the old set or the new one, never some of both.
        store.delete(MANIFEST_NAME)
        there = {}
    names = [name for name in _files(directory, manifest) if _differs(directory, name, there)]
    total = sum((directory / name).stat().st_size for name in names)
    with (
        Progress(total=total, what="uploading", quiet=quiet) as progress,
        ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="push") as pool,
    ):
        sent = [pool.submit(store.put, name, directory / name) for name in names]
        try:
            for name, upload in zip(names, sent, strict=True):
                upload.result()
                progress.advance((directory / name).stat().st_size)
        finally:
            for upload in sent:
                upload.cancel()
    _check(store, directory, manifest)
    store.put(MANIFEST_NAME, directory / MANIFEST_NAME)
    return len(names) + 1


def _there(store: Store) -> dict[str, int]:
    found = store.sizes()
    assert found is not None, store.location
    return found


def _manifest_there(store: Store, there: dict[str, int]) -> Manifest | None:
    """The manifest at the store; None if there is none, or none that can be read."""
    try:
        return load_manifest(store.location) if MANIFEST_NAME in there else None
    except StoreError:
        raise
    except UserError:
        return None


def _files(directory: Path, manifest: Manifest) -> Iterator[str]:
    """All files of a set but its manifest, the tars first."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    yield from (shard.tar for shard in shards)
    yield from (shard.index for shard in shards)
    yield from (name for name in (REJECTED_NAME, CARD_NAME) if (directory / name).is_file())


def _differs(directory: Path, name: str, there: dict[str, int]) -> bool:
    try:
        return there.get(name) != (directory / name).stat().st_size
    except OSError as error:
        raise UserError(
            f"{directory / name} cannot be read ({error.strerror}); pack the data again"
        ) from None


def _check(store: Store, directory: Path, manifest: Manifest) -> None:
    """Raise `UserError` where a file did not arrive whole: nothing is announced then."""
    there = _there(store)
    for name in _files(directory, manifest):
        if _differs(directory, name, there):
            raise UserError(
                f"{joined(store.location, name)} has {there.get(name, 'no')} bytes after its "
                "upload; the manifest was not written. Push again"
            )
