"""From what a table's cell says to the file of an image.

Tables come from other machines: Windows writes `img\\1.jpg`, browsers and labelling tools write
`file://` URLs, and cameras write `1.JPG` where the table has `1.jpg`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from mmsa.raw_files.missing_values import is_missing

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:|file:/", re.IGNORECASE)
_SHOWN = 80  # characters


class NoImageFile(ValueError):
    """A cell does not name an image file; the message says what it says, but not where it is.

    `kind` is "none" where it names no image, "absent" where the file that it names does not exist
    (a mistake, unlike the former), "address" where it is the address of something elsewhere.
    """

    def __init__(self, kind: Literal["none", "absent", "address"], message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def in_row(self, row: int) -> str:
        """The message with the number of the row."""
        return f"row {row}{' ' if self.kind == 'none' else ': '}{self}"

    def __reduce__(self) -> tuple[type[NoImageFile], tuple[str, str]]:
        return NoImageFile, (self.kind, str(self))  # loader processes pickle it


class ImagePaths:
    """Finds the images of a table whose paths are relative to `folder`.

    It keeps the names of the folders that it has listed: they must not change meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, cell: str) -> Path:
        """The file that `cell` names.

        As it is written, where that is a file; else with slashes for backslashes; else with the
        extension in another case, where exactly one file is called that. Raises `NoImageFile`
        where there is no such file, where the cell is empty, and where it is the address of
        something that is not on this machine.
        """
        written = cell.strip()
        if not written:
            raise NoImageFile("none", "names no picture")
        if _URL.match(written):
            written = _local(written)
        path = self._folder / written
        if _exists(path):
            return path
        if is_missing(written):
            raise NoImageFile("none", f"names no picture but {written!r}")
        other = self._folder / written.replace("\\", "/")
        found = other if _exists(other) else self._other_case(other)
        if not _exists(found):  # said with the cell: a wrong drive or a slash is seen in it alone
            detail = f"the file {cell.strip()[-_SHOWN:]!r} does not exist"
            raise NoImageFile("absent", detail)
        return found

    def _other_case(self, path: Path) -> Path:
        """`path`, or the one file of its folder whose extension differs from it in case alone."""
        folder = path.parent
        if folder not in self._names:
            self._names[folder] = _by_plain_name(folder)
        found = self._names[folder].get(_plain(path.name), [])
        return folder / found[0] if len(found) == 1 else path


def _local(url: str) -> str:
    """The path of a `file:` URL of this machine. Raises `NoImageFile` for every other URL."""
    if url.lower().startswith("file:/") and not url.lower().startswith("file://"):
        url = f"file://{url[len('file:') :]}"  # RFC 8089 allows both
    if not url.lower().startswith("file://"):
        raise NoImageFile("address", f"{url[:_SHOWN]!r}; download it first")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise NoImageFile("address", f"{url[:_SHOWN]!r} does not parse") from None
    if parts.netloc.lower() not in ("", "localhost", "127.0.0.1"):
        detail = f"{url[:_SHOWN]!r} is on the machine {parts.netloc[:_SHOWN]!r}"
        raise NoImageFile("address", detail)
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
        pass  # the image is then missing, and reported as that
    return found
