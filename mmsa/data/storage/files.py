"""The files of a packed set as its readers use them: from a folder, or from a node's cache.

Readers ask by the manifest's entry. A folder is read in place. From a store a file is fetched
first: by the downloader of this command, if it has one, else by the process that asks.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from mmsa.data.storage.cache import Cache, Wanted, is_alive
from mmsa.data.storage.fetching import fetch, fetch_all
from mmsa.data.storage.settings import CacheSettings, cache_settings, default_directory
from mmsa.data.storage.sources import StoreError
from mmsa.data.storage.store import Store
from mmsa.errors import ShardDamage, UserError
from mmsa.foundation.atomic_write import write_file, write_status
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.regular_file import read_regular
from mmsa.foundation.urls import is_url, joined, url_problem

_REPORT_S = 0.2
_POLL_S = 0.02
_OWN_FETCH_S = 0.5  # a file that the downloader does not know by then is fetched here
_MOST_ASKED = 64  # sizes that are asked one by one where a store cannot list


class LocalFiles:
    """Files in a folder, read in place.

    `open_tar` and `read` raise `OSError`, those of `CachedFiles` also `ShardDamage`. `read` with
    `again` asks the store also for what the cache has. Both classes are picklable; `location` is
    the folder or URL as the user gave it.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.location = str(Path(directory))

    def open_tar(self, wanted: Wanted) -> int:
        # A named pipe would be waited for without O_NONBLOCK; reading it fails later.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(os.path.join(self.location, wanted.name), flags)

    def read(self, wanted: Wanted, *, again: bool = False) -> bytes:
        return read_regular(os.path.join(self.location, wanted.name))

    def read_unlisted(self, name: str) -> bytes:
        """A file that the manifest has no digest of. Raises `OSError`."""
        return read_regular(os.path.join(self.location, name))

    def names(self) -> list[str]:
        """The names of all files."""
        return os.listdir(self.location)


class CachedFiles:
    """Files of a store, or of a slow folder, read from the node's cache."""

    def __init__(self, location: str, settings: CacheSettings) -> None:
        self.location = location
        self.store = Store(location)
        self.patience_s = settings.patience_s
        directory = (settings.directory or default_directory()).expanduser().absolute()
        self.cache = Cache(directory, settings.limit_bytes)
        self.cache.prepare()
        self.run = None if settings.run is None else directory / "runs" / settings.run
        self._reported: tuple[str, int, Collection[int]] | None = None  # reader, step, its shards
        self._report_due_s = 0.0

    def open_tar(self, wanted: Wanted) -> int:
        while True:
            try:
                descriptor = self.cache.open(wanted)
            except OSError as error:  # not the store's fault
                cached = self.cache.path(wanted.sha256)
                raise ShardDamage(
                    f"{joined(self.location, wanted.name)} cannot be opened in the cache: "
                    f"{cached}: {error.strerror or error}. Mend that, or name another folder by "
                    "data.cache",
                    shard=wanted.name,
                ) from None
            if descriptor is not None:
                return descriptor
            self._wait_for(wanted)

    def read(self, wanted: Wanted, *, again: bool = False) -> bytes:
        if again:
            self._fetch(wanted, again=True)
        descriptor = self.open_tar(wanted)
        with open(descriptor, "rb") as file:
            return file.read()

    def read_unlisted(self, name: str) -> bytes:
        """A file that the manifest has no digest of, not from the cache. Raises `StoreError`."""
        return b"".join(self.store.stream(name))

    def names(self) -> list[str]:
        """The names of all files; [] where the store cannot list. Raises `StoreError`."""
        return list(self.store.sizes() or ())

    def _wait_for(self, wanted: Wanted) -> None:
        """Return when the file may be there. Raises `ShardDamage` where it cannot be fetched."""
        since = time.monotonic()
        while not self.cache.path(wanted.sha256).exists():
            if self.run is None or not is_alive(self.run):
                self._fetch(wanted)
                return
            with suppress(OSError, ValueError):
                failed = parse_json((self.run / "failed.json").read_text()).get(wanted.sha256)
                if failed:
                    raise ShardDamage(failed, shard=wanted.name)
            if time.monotonic() - since > _OWN_FETCH_S and not self._is_planned(wanted):
                self._fetch(wanted)
                return
            self._report_again()
            time.sleep(_POLL_S)

    def _report_again(self) -> None:
        """Another rank's start may have removed the report while this one waits for its step."""
        if self.run is not None and self._reported is not None:
            reader, step, _ = self._reported
            if not (self.run / f"at-{reader}").exists():
                self._write_step(reader, step)

    def _is_planned(self, wanted: Wanted) -> bool:
        assert self.run is not None
        try:
            said = parse_json((self.run / "sight.json").read_text())
        except (OSError, ValueError):
            return False
        return wanted.sha256 in said["now"] or wanted.sha256 in said["ahead"]

    def _fetch(self, wanted: Wanted, *, again: bool = False) -> None:
        try:
            fetch(self.cache, self.store, wanted, patience_s=self.patience_s, again=again)
        except StoreError as error:
            raise ShardDamage(str(error), shard=wanted.name) from None

    def fetch_all(self, wanted: Sequence[Wanted]) -> None:
        """Bring all files into the cache, several at once. Raises `ShardDamage`, and `UserError`
        where the cache's limit is smaller."""
        if not wanted:
            return
        self.check_room(sum(one.size or 0 for one in wanted), what="this split")
        try:
            fetch_all(self.cache, self.store, list(wanted), patience_s=self.patience_s)
        except StoreError as error:
            raise ShardDamage(str(error), shard=wanted[0].name) from None

    def check_room(
        self, needed: int, *, what: str, remedy: str = "use a larger one, or null"
    ) -> None:
        """Raise `UserError` where the cache's limit is smaller than the `needed` bytes."""
        limit = self.cache.limit_bytes
        if limit is not None and needed > limit:
            raise UserError(
                f"data.cache_limit={limit} bytes is smaller than what {what} needs at the same "
                f"time, {needed} bytes; {remedy}"
            )

    def report_step(self, reader: str, step: int, shards: Collection[int]) -> None:
        """Tell the downloader that `reader`, a rank's loader process, now reads `step`.

        At once where it reads other `shards` than the last one, else five times a second, because a
        write costs as much as reading a few samples.
        """
        is_due = time.monotonic() >= self._report_due_s
        if is_due or self._reported is None or shards != self._reported[2]:
            self._write_step(reader, step)
        self._reported = reader, step, shards

    def _write_step(self, reader: str, step: int) -> None:
        """By its path each time: a downloader that starts again may have deleted it."""
        self._report_due_s = time.monotonic() + _REPORT_S
        if self.run is not None:
            with suppress(OSError):
                write_status(self.run / f"at-{reader}", step, make_directory=False)


def files_at(location: str | os.PathLike[str]) -> LocalFiles | CachedFiles:
    """The files of the packed set at `location`, by the cache settings of this process.

    Raises `UserError` for a URL that cannot be used.
    """
    place = os.fspath(location)
    settings = cache_settings()
    if is_url(place):
        problem = url_problem(place)
        if problem:
            raise UserError(f"the shards cannot be read: {problem}")
        return CachedFiles(place, settings)
    if settings.directory is not None and settings.folders:
        return CachedFiles(os.path.abspath(place), settings)
    return LocalFiles(place)


def found_sizes(files: LocalFiles | CachedFiles, names: Sequence[str]) -> dict[str, int | str]:
    """Name -> bytes, or why the file cannot be read.

    A folder is asked for each name; a store lists them, and one that cannot (plain HTTP) is asked
    for some that lie evenly: a missing one among the others is found when it is fetched.
    """
    if isinstance(files, LocalFiles) or not files.store.is_remote:
        return {name: _local_size(os.path.join(files.location, name)) for name in names}
    listed = files.store.sizes()
    if listed is not None:
        return {name: listed.get(name, "cannot be read (it is not there)") for name in names}
    asked = names[:: -(-len(names) // _MOST_ASKED)] if names else []
    return dict(zip(asked, _asked_sizes(files.store, asked), strict=True))


def _local_size(path: str) -> int | str:
    try:
        return os.stat(path).st_size
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _asked_sizes(store: Store, names: Sequence[str]) -> list[int | str]:
    from concurrent.futures import ThreadPoolExecutor

    def size(name: str) -> int | str:
        try:
            return store.size(name)
        except StoreError as error:
            return f"cannot be read ({error})"

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(size, names))


def read_manifest(location: str, name: str) -> bytes:
    """The bytes of the manifest `name` of a set in a store, transferred once a node.

    Each process asks whether it changed (one small request); one of them fetches it. Raises
    `StoreError`, also for a set that is not there.
    """
    problem = url_problem(location)
    if problem:
        raise UserError(f"the shards cannot be read: {problem}")
    files = CachedFiles(location, replace(cache_settings(), run=None))
    address = joined(location, name)
    key = hashlib.sha256(address.encode()).hexdigest()
    folder = files.cache.directory / "manifests"
    # Who holds the lock may wait for a slow store longer than this process does. Then each asks for
    # itself, and those that get no answer end with the store's words.
    lock: AbstractContextManager[object] = nullcontext()
    with suppress(BlockingIOError):
        lock = FileLock(folder / f"{key[:3]}.lock", wait_s=files.patience_s)
    with lock:
        tag, cached, kept = folder / f"{key}.tag", folder / f"{key}.json", b""
        known = None
        with suppress(OSError, ValueError, KeyError, TypeError):
            said, kept = parse_json(tag.read_text()), cached.read_bytes()
            # Else the disk changed the file, or two processes wrote it and its tag.
            if said["sha256"] == hashlib.sha256(kept).hexdigest():
                known = said["tag"]
        answer = _asked_again(files, name, known)
        if answer is None:
            return kept
        content, new_tag = answer
        with suppress(OSError):  # a full disk: fetched again next time
            write_file(cached, content, durable=False)
            if new_tag:
                digest = hashlib.sha256(content).hexdigest()
                said = {"address": address, "tag": new_tag, "sha256": digest}
                write_file(tag, json.dumps(said), durable=False)
        return content


def _asked_again(files: CachedFiles, name: str, tag: str | None) -> tuple[bytes, str | None] | None:
    """`Store.read_unless`, until it answers or for the cache's patience."""
    deadline, pause = time.monotonic() + files.patience_s, 0.1
    while True:
        try:
            return files.store.read_unless(name, tag)
        except StoreError as error:
            if error.final or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
