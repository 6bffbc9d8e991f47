"""A store as a flat folder of files: streams, sizes, uploads. A local folder is one, too.

Every error of a store is a `StoreError`. Nothing is retried here beyond what the client does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.data.storage.sources import StoreError, client_of, hub_place, translated
from mmsa.foundation.regular_file import open_regular
from mmsa.foundation.urls import is_url, joined

if TYPE_CHECKING:
    import asyncio

_CHUNK = 1 << 20  # bytes handed on at a time


class Store:
    """The files at `location`, a URL or a local folder. Pickled without its client."""

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") if is_url(location) else location
        self._client: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of `read_ranges`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_loop": None}

    @property
    def is_remote(self) -> bool:
        return is_url(self.location)

    def _opened(self) -> Any:
        # Never before a fork: the client has threads. Loader processes unpickle and make their own.
        if self._client is None:
            self._client = client_of(self.location)
        return self._client

    @contextmanager
    def _speaking_of(self, name: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if self.is_remote and isinstance(error, FileNotFoundError):
                raise translated(error, joined(self.location, name)) from None
            raise StoreError(
                f"{joined(self.location, name)}: {error.strerror or error}",
                final=isinstance(error, FileNotFoundError | PermissionError),
            ) from None
        except Exception as error:
            if not self.is_remote:
                raise
            raise translated(error, joined(self.location, name)) from None

    def stream(self, name: str, start: int = 0) -> Iterator[bytes | memoryview]:
        """The bytes of the file `name` from `start` on, in pieces. Raises `StoreError`."""
        if not self.is_remote:
            yield from self._local_stream(name, start)
            return
        options: Any = {"range": {"offset": start}} if start else None
        with self._speaking_of(name):
            answer = self._opened().get(name, options=options)
            pieces = iter(answer.stream(min_chunk_size=_CHUNK))
        while True:
            with self._speaking_of(name):
                piece = next(pieces, None)
            if piece is None:
                return
            yield memoryview(piece)

    def _local_stream(self, name: str, start: int) -> Iterator[bytes]:
        with self._speaking_of(name):
            file = open_regular(Path(self.location) / name)
        with file:
            file.seek(start)
            while True:
                with self._speaking_of(name):
                    piece = file.read(_CHUNK)
                if not piece:
                    return
                yield piece

    def read_ranges(
        self, ranges: Sequence[tuple[str, int, int]], *, timeout_s: float
    ) -> list[bytes]:
        """The bytes of each of `ranges`, (name, offset, length), all asked for at once.

        Raises `StoreError`, also where not all are there after `timeout_s`.
        """
        if not self.is_remote:
            return [self._local_range(*one) for one in ranges]
        import asyncio  # a tenth of the time in which a downloader starts

        async def all_of_them() -> list[bytes]:
            client = self._opened()
            asked = [
                client.get_range_async(name, start=offset, length=length)
                for name, offset, length in ranges
            ]
            return [bytes(one) for one in await asyncio.gather(*asked)]

        # Tasks and not threads: they can be given up, and leave nothing that the process waits for.
        # The loop stays: what is given up answers later, and prints a traceback if it was closed.
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        with self._speaking_of(""):
            return self._loop.run_until_complete(asyncio.wait_for(all_of_them(), timeout_s))

    def _local_range(self, name: str, offset: int, length: int) -> bytes:
        with self._speaking_of(name), open_regular(Path(self.location) / name) as file:
            file.seek(offset)
            return file.read(length)

    def read_unless(self, name: str, tag: str | None) -> tuple[bytes, str | None] | None:
        """(the bytes of `name`, its entity tag); None if its tag is still `tag`."""
        from obstore.exceptions import NotModifiedError

        options: Any = {"if_none_match": tag} if tag else None
        with self._speaking_of(name):
            try:
                answer = self._opened().get(name, options=options)
                return bytes(answer.bytes()), answer.meta.get("e_tag")
            except NotModifiedError:
                return None

    def size(self, name: str) -> int:
        """Bytes of the file `name`. Raises `StoreError`."""
        with self._speaking_of(name):
            if not self.is_remote:
                return os.stat(Path(self.location) / name).st_size
            return int(self._opened().head(name)["size"])

    def sizes(self) -> dict[str, int] | None:
        """Bytes of every file by name, with one request for 1,000; None where it cannot list."""
        if not self.is_remote:
            with self._speaking_of(""), os.scandir(self.location) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        if self.location.startswith("hf://"):
            return self._hub_sizes()
        if self.location.startswith("http"):
            return None
        found: dict[str, int] = {}
        with self._speaking_of(""):
            for page in self._opened().list(chunk_size=1000):
                found.update({entry["path"]: int(entry["size"]) for entry in page})
        return found

    def _hub_sizes(self) -> dict[str, int]:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        repository, revision, folder = hub_place(self.location)
        with self._speaking_of(""):
            entries = HfApi().list_repo_tree(
                repository, folder or None, revision=revision, repo_type="dataset"
            )
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path.removeprefix(folder).lstrip("/"): file.size for file in files}

    def put(self, name: str, content: Path | bytes) -> None:
        """Upload bytes, or the file at a path, as `name`: in parts where it is large. Raises
        `StoreError`."""
        with self._speaking_of(name):
            self._opened().put(name, content)

    def delete(self, *names: str) -> None:
        """Remove these files, which are there. Raises `StoreError`."""
        with self._speaking_of(names[0] if len(names) == 1 else ""):
            self._opened().delete(list(names))
