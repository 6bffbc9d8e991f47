"""From what a table's cell says to the file of an image.

Tables come from other machines: Windows writes `img\\1.jpg`, browsers and labelling tools write
`file://` URLs, and cameras write `1.JPG` where the table has `1.jpg`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from shards.example import Reason, Reject
from shards.missing_values import is_missing

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:|file:/", re.IGNORECASE)
_SHOWN = 80  # characters


class ImagePaths:
    """Finds the images of a table whose paths are relative to `folder`.

    It keeps the names of the folders that it has listed: they must not change meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, cell: str, *, row: int) -> Path:
        """The file that `cell` of row number `row` names.

        As it is written, where that is a file; else with slashes for backslashes; else with the
        extension in another case, where exactly one file is called that. Raises `Reject` where the
        cell is empty, where there is no such file, and where the cell is the address of something
        that is not on this machine.
        """
        written = cell.strip()
        if not written:
            raise Reject(Reason.NO_IMAGE, f"row {row} names no picture")
        if _URL.match(written):
            written = _local(written, row)
        path = self._folder / written
        if _exists(path):
            return path
        if is_missing(written):
            raise Reject(Reason.NO_IMAGE, f"row {row} names no picture but {written!r}")
        other = self._folder / written.replace("\\", "/")
        found = other if _exists(other) else self._other_case(other)
        if not _exists(found):  # said with the cell: a wrong drive or a slash is seen in it alone
            detail = f"row {row}: the file {cell.strip()[-_SHOWN:]!r} does not exist"
            raise Reject(Reason.NO_IMAGE, detail)
        return found

    def _other_case(self, path: Path) -> Path:
        """`path`, or the one file of its folder whose extension differs from it in case alone."""
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = _by_plain_name(folder)
        found = self._names[folder].get(_plain(path.name), [])
        return folder / found[0] if len(found) == 1 else path


def _local(url: str, row: int) -> str:
    """The path of a `file:` URL of this machine. Raises `Reject` for every other URL."""
    if url.lower().startswith("file:/") and not url.lower().startswith("file://"):
        url = f"file://{url[len('file:') :]}"  # RFC 8089 allows both
    if not url.lower().startswith("file://"):
        raise Reject(Reason.IMAGE_URL, f"row {row}: {url[:_SHOWN]!r}; download it first")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise Reject(Reason.IMAGE_URL, f"row {row}: {url[:_SHOWN]!r} does not parse") from None
    if parts.netloc.lower() not in ("", "localhost", "127.0.0.1"):
        detail = f"row {row}: {url[:_SHOWN]!r} is on the machine {parts.netloc[:_SHOWN]!r}"
        raise Reject(Reason.IMAGE_URL, detail)
    path = url[len("file://") + len(parts.netloc) :]
    raw = unquote(path, errors="surrogateescape")
    # Not every program escapes a `%` or a `#`: the name as it is written may be the file's.
    return path if _exists(Path(path)) else raw


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):  # a NUL or half a character in the name
        return False


def _plain(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def _by_plain_name(folder: Path) -> dict[str, list[str]]:
    """The files of `folder` by their names with the extension in lower case."""
    found: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.setdefault(_plain(entry.name), []).append(entry.name)
    except (OSError, ValueError):
        pass  # the image is then missing, and rejected as that
    return found
