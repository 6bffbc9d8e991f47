"""One file from a store into the cache: whole, with the digest of the manifest, or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable

from mmsa.data.storage.cache import Cache, Wanted
from mmsa.data.storage.sources import StoreError
from mmsa.data.storage.store import Store
from mmsa.foundation.sizes import size_in_words
from mmsa.foundation.urls import joined

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(StoreError):
    """The cache is full of what windows need."""


def fetch(
    cache: Cache,
    store: Store,
    wanted: Wanted,
    *,
    patience_s: float,
    urgent: bool = True,
    again: bool = False,
) -> None:
    """Bring `wanted` into the cache, if it is not there; other processes wait for the first. With
    `again` also if it is there, which it replaces.

    A cut connection continues where it was cut. Raises `StoreError`: an answer that is final, other
    bytes than the manifest says (twice), no byte for `patience_s`; and `NoRoom`, for what is not
    `urgent` at once, also where the disk has no room.
    """
    deadline = time.monotonic() + patience_s
    while again or not cache.path(wanted.sha256).exists():
        try:
            if _fetched(cache, store, wanted, patience_s, urgent=urgent, again=again):
                return
        except BlockingIOError:  # who holds the lock has its own patience
            continue
        except OSError as error:
            raise _not_written(joined(store.location, wanted.name), cache, error) from None
        limit = cache.limit_bytes or 0
        problem = (
            f"{joined(store.location, wanted.name)} ({size_in_words(wanted.size or 0)}) has no "
            f"room in the cache {cache.directory} of data.cache_limit={size_in_words(limit)}: "
            "windows of running commands need the rest. Use a larger limit, fewer "
            "data.window_shards, or another folder for each run"
        )
        if not urgent or time.monotonic() > deadline or (wanted.size or 0) > limit:
            raise NoRoom(problem)
        time.sleep(_FIRST_PAUSE_S)


def _fetched(
    cache: Cache, store: Store, wanted: Wanted, patience_s: float, *, urgent: bool, again: bool
) -> bool:
    """Whether `wanted` is in the cache now; False if there is no room. Raises as `fetch` does, and
    `OSError` of the cache; `BlockingIOError` where another process is fetching it."""
    with cache.fetching(wanted.sha256, wait_s=1.0):
        if not again and cache.path(wanted.sha256).exists():
            return True
        with cache.reserved(wanted, urgent=urgent) as place:
            if place is None:
                return False
            _Download(cache, store, wanted, place[0], patience_s, urgent).run()
            cache.keep(place[1], wanted.sha256)
            return True


def _not_written(place: str, cache: Cache, error: OSError) -> StoreError:
    full = error.errno in _DISK_FULL
    what = "the disk is full" if full else (error.strerror or str(error))
    return StoreError(
        f"{place} cannot be written to the cache {cache.directory}: {what}. Make room there or "
        "name another folder by data.cache; the same command continues",
        final=True,
    )


class _Download:
    """The bytes of one file, from the store to an open file."""

    def __init__(
        self,
        cache: Cache,
        store: Store,
        wanted: Wanted,
        file: int,
        patience_s: float,
        urgent: bool,
    ) -> None:
        self.cache, self.store, self.wanted, self.file = cache, store, wanted, file
        self.patience_s, self.urgent = patience_s, urgent
        self.place = joined(store.location, wanted.name)
        self.position, self.digest = 0, hashlib.sha256()
        self.deadline = time.monotonic() + patience_s

    def run(self) -> None:
        """Return once the file is whole and on the disk; raises as `fetch` does."""
        pause, wrong = _FIRST_PAUSE_S, ""
        while True:
            before = self.position
            try:
                if self.position != self.wanted.size:  # not cut right behind the last byte
                    self._take(self.store.stream(self.wanted.name, self.position))
                problem = self._problem()
                if not problem:
                    os.truncate(self.file, self.position)
                    os.fdatasync(self.file)
                    return
                if wrong:  # the same answer twice: not an accident on the way
                    raise StoreError(f"{self.place} {problem}", final=True)
                wrong, self.position, self.digest = problem, 0, hashlib.sha256()
            except StoreError as error:
                if error.final:
                    raise
                if time.monotonic() > self.deadline:
                    raise StoreError(f"{error} (for {self.patience_s:.0f} s)") from None
            except OSError as error:
                self._make_room(error)
            pause = _FIRST_PAUSE_S if self.position > before else min(2 * pause, _LONGEST_PAUSE_S)
            time.sleep(pause)

    def _take(self, pieces: Iterable[bytes | memoryview]) -> None:
        for piece in pieces:
            size = self.wanted.size
            if size is not None and self.position + len(piece) > size:
                self.position += len(piece)
                return  # longer than the manifest says
            _write(self.file, piece, self.position)
            self.digest.update(piece)
            self.position += len(piece)
            self.deadline = time.monotonic() + self.patience_s

    def _problem(self) -> str:
        """What is wrong with what arrived; "" if nothing is."""
        size = self.wanted.size
        if size is not None and self.position != size:
            more = "more than " if self.position > size else f"{self.position}, not "
            return f"has {more}the {size} bytes that the manifest says"
        if self.digest.hexdigest() != self.wanted.sha256:
            return (
                "has other bytes than the manifest says (sha256 "
                f"{self.digest.hexdigest()[:12]}, not {self.wanted.sha256[:12]}), also when "
                "fetched again. Upload it again: python -m shards push OUT URL --overwrite"
            )
        return ""

    def _make_room(self, error: OSError) -> None:
        """Free space of the cache after a full disk; `StoreError` if there is none for too long, or
        at once where no reader waits."""
        full = error.errno in _DISK_FULL
        rest = max(1, (self.wanted.size or 0) - self.position)
        if full and self.cache.free(rest, urgent=self.urgent):
            return
        if full and self.urgent and time.monotonic() < self.deadline:
            return
        raise _not_written(self.place, self.cache, error) from None


def _write(file: int, piece: bytes | memoryview, position: int) -> None:
    written = 0
    while written < len(piece):
        written += os.pwrite(file, piece[written:], position + written)


def fetch_all(
    cache: Cache,
    store: Store,
    wanted: list[Wanted],
    *,
    patience_s: float,
    processes: int = 8,
    done: Callable[[Wanted], None] = lambda _: None,
) -> None:
    """Bring all of `wanted` into the cache, several at once. Raises the first `StoreError`."""
    from concurrent.futures import ThreadPoolExecutor

    missing = [one for one in wanted if not cache.path(one.sha256).exists()]
    with ThreadPoolExecutor(processes, thread_name_prefix="fetch") as pool:
        waiting = [pool.submit(fetch, cache, store, one, patience_s=patience_s) for one in missing]
        try:
            for one, future in zip(missing, waiting, strict=True):
                future.result()
                done(one)
        finally:
            for future in waiting:
                future.cancel()
