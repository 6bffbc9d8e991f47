"""A node's cache: whole files by digest, shared by all processes and runs of the node.

    DIR/mmsa-cache.json        says that this folder is a cache; without it nothing is ever deleted
    DIR/objects/ab/<sha256>    a file, whole and verified
    DIR/partial/...            a file that is being fetched; its writer holds a lock on it
    DIR/locks/<000..fff>       who fetches which digest
    DIR/runs/<run>/            a downloader: its lock, what its windows need, what failed
    DIR/manifests/...          manifests by the address that they came from

All locks are flock(2): the kernel releases them when their holder ends, however it ends, and they
work over NFS. A reader holds a shared lock on each file that it has open. Only what is named as
above is ever deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.parsing import parse_json

MARKER = "mmsa-cache.json"
_CONTENT = {"format": "mmsa-cache", "version": 1}
_DIGEST = re.compile("[0-9a-f]{64}")
_LOCK_WAIT_S = 60.0  # for what is done under the cache's lock: a listing


@dataclass(frozen=True)
class Wanted:
    """A file of a store as the manifest has it: name, bytes (None: unknown), digest in hex."""

    name: str
    size: int | None
    sha256: str


class Cache:
    """The folder `directory` as a cache of at most `limit_bytes` (None: as the disk allows)."""

    def __init__(self, directory: Path, limit_bytes: int | None = None) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes

    def prepare(self) -> None:
        """Make the folder, or check that it is a cache. Raises `UserError`."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            marker = self.directory / MARKER
            if not marker.exists():
                others = [n for n in os.listdir(self.directory) if not n.startswith(f".{MARKER}")]
                if others and not marker.exists():
                    raise UserError(
                        f"data.cache={self.directory} is not empty and not a cache of mmsa (it has "
                        f"{sorted(others)[0]}); files in a cache are deleted, so name a new folder"
                    )
                write_file(marker, json.dumps(_CONTENT) + "\n")
            elif parse_json(marker.read_text()) != _CONTENT:
                raise UserError(
                    f"the cache {self.directory} has another format ({marker.name}); name a new "
                    "folder by data.cache"
                )
            for name in ("objects", "partial", "locks", "runs", "manifests"):
                (self.directory / name).mkdir(exist_ok=True)
            with self._locked():
                self._partial_bytes()  # removes what killed processes left
        except (OSError, ValueError) as error:
            raise UserError(
                f"the cache {self.directory} cannot be used ({error}); name a folder on this "
                "machine that you can write to, by data.cache"
            ) from None

    def path(self, sha256: str) -> Path:
        """Where the file of this digest is, once it is whole."""
        return self.directory / "objects" / sha256[:2] / sha256

    def fetching(self, sha256: str, wait_s: float) -> FileLock:
        """The right to fetch this digest. Raises `BlockingIOError` after `wait_s`."""
        return FileLock(self.directory / "locks" / sha256[:3], wait_s=wait_s)

    @contextmanager
    def reserved(self, wanted: Wanted, *, urgent: bool) -> Iterator[tuple[int, Path] | None]:
        """An empty file for `wanted`, open for writing, whose size counts from now on; its name is
        free again on exit. None if there is no room and nothing may go.

        `urgent`: a reader waits for it, so what others only fetched ahead may go. What is not must
        find room on the disk, too, before anything of it is sent.
        """
        size = wanted.size or 0
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:40]
        unique = f"{wanted.sha256}.{host}.{os.getpid()}.{secrets.token_hex(4)}"
        path = self.directory / "partial" / unique
        with self._locked():
            if not self._make_room(size, urgent):
                descriptor = -1
            else:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                _flock(descriptor, fcntl.LOCK_EX)
                with suppress(OSError):  # a full disk says so when bytes are written
                    os.truncate(descriptor, size)
        if descriptor < 0:
            yield None
            return
        try:
            yield descriptor, path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def keep(self, written: Path, sha256: str) -> None:
        """Give a whole, verified file its name. Raises `OSError`."""
        final = self.path(sha256)
        final.parent.mkdir(exist_ok=True)
        os.replace(written, final)

    def free(self, size: int, *, urgent: bool) -> bool:
        """Delete files that no window needs until `size` bytes are free; False if none could go.

        For a full disk, whatever the limit. `urgent` as in `reserved`.
        """
        with self._locked():
            freed = self._delete(size, urgent)
        return freed > 0

    def open(self, wanted: Wanted) -> int | None:
        """A descriptor of the file, protected from deletion while it is open; None if absent."""
        path = self.path(wanted.sha256)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB):
            os.close(descriptor)  # it is just being deleted
            return None
        found = os.fstat(descriptor)
        if found.st_nlink and (wanted.size is None or found.st_size == wanted.size):
            with suppress(OSError):  # belongs to somebody else: its age then counts from its start
                os.utime(descriptor)
            return descriptor
        os.close(descriptor)
        if found.st_nlink:  # cut by a power failure
            self.discard(wanted.sha256)
        return None

    def discard(self, sha256: str) -> None:
        """Delete one file, which is not as it should be."""
        with suppress(FileNotFoundError):
            self.path(sha256).unlink()

    def _locked(self) -> FileLock:
        try:
            return FileLock(self.directory / "locks" / "cache", wait_s=_LOCK_WAIT_S)
        except BlockingIOError:
            raise UserError(
                f"another process holds {self.directory}/locks/cache for more than "
                f"{_LOCK_WAIT_S:.0f} s; the file system of the cache does not respond"
            ) from None

    def _make_room(self, size: int, urgent: bool) -> bool:
        excess = 0
        if self.limit_bytes is not None:
            used = sum(entry[1] for entry in self._objects()) + self._partial_bytes()
            excess = used + size - self.limit_bytes
        if not urgent:
            excess = max(excess, size - self._free_on_disk())
        return excess <= 0 or self._delete(excess, urgent) >= excess

    def _free_on_disk(self) -> int:
        """Bytes that the files which are being fetched will leave."""
        disk = os.statvfs(self.directory)
        to_come = 0
        for entry in _entries(self.directory / "partial"):
            with suppress(FileNotFoundError):
                state = entry.stat(follow_symlinks=False)
                to_come += max(0, state.st_size - 512 * state.st_blocks)
        return disk.f_bavail * disk.f_frsize - to_come

    def _delete(self, size: int, urgent: bool) -> int:
        """Delete up to `size` bytes, least recently used first; returns how many went."""
        now, ahead = self.in_sight()
        kept = now if urgent else now | ahead
        freed = 0
        # What only lies ahead goes after everything that no window needs.
        for _, num_bytes, path in sorted(
            self._objects(), key=lambda entry: (entry[2].name in ahead, entry[0])
        ):
            if freed >= size:
                break
            if path.name not in kept and _unlink_unless_open(path):
                freed += num_bytes
        return freed

    def _objects(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every file."""
        found = []
        for folder in _entries(self.directory / "objects"):
            for entry in _entries(Path(folder.path)):
                if _DIGEST.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        state = entry.stat(follow_symlinks=False)
                        found.append((state.st_mtime, state.st_size, Path(entry.path)))
        return found

    def _partial_bytes(self) -> int:
        """Bytes of files that are being fetched; those of killed processes are deleted."""
        total = 0
        for entry in _entries(self.directory / "partial"):
            if not _DIGEST.match(entry.name) or _unlink_unless_open(Path(entry.path)):
                continue
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
        return total

    def in_sight(self) -> tuple[set[str], set[str]]:
        """(digests that a window needs now, that one needs soon) of all running downloaders."""
        now: set[str] = set()
        ahead: set[str] = set()
        for entry in _entries(self.directory / "runs"):
            with suppress(OSError, ValueError):
                if is_alive(Path(entry.path)):
                    said = parse_json((Path(entry.path) / "sight.json").read_text())
                    now.update(said["now"])
                    ahead.update(said["ahead"])
        return now, ahead - now


def is_alive(run: Path) -> bool:
    """Whether the downloader of the folder `run` is running: it holds its lock."""
    try:
        descriptor = os.open(run / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unlink_unless_open(path: Path) -> bool:
    """Delete a file that no process holds a lock on; whether it is gone."""
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks only what is writable
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        if not _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        path.unlink(missing_ok=True)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _flock(descriptor: int, kind: int) -> bool:
    """Take a lock; False if another process has it. A file system without locks gives all."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
