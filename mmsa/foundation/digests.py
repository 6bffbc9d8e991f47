"""What a directory's files were when they were written: sizes and SHA-256 digests in a JSON file.

    {"model.safetensors": {"bytes": 1234, "sha256": "9f86..."}, "tokenizer/vocab.txt": {...}, ...}

Such a list lies next to the files it describes (`digests.json` of an export, `COMPLETE` of a
checkpoint). Files are hashed by several threads; the interpreter's lock is free meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json

logger = logging.getLogger("mmsa")

DIGESTS_NAME = "digests.json"  # of an export
_BUFFER_BYTES = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")

Advance = Callable[[int], object]  # is told how many more bytes have been read


@dataclass(frozen=True)
class FileDigest:
    """A file's size and SHA-256 in hex; early versions noted sizes only (`sha256` is None)."""

    num_bytes: int
    sha256: str | None


Listing = Mapping[str, FileDigest]  # by path relative to the directory, with forward slashes


class UnreadableListing(ValueError):
    """A file that should hold a `Listing` and does not; the message says what is wrong."""


def digest_of_file(path: Path, advance: Advance | None = None) -> FileDigest:
    """Read a file once and return its digest. Raises `OSError`."""
    sha256, num_bytes, buffer = hashlib.sha256(), 0, bytearray(_BUFFER_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            sha256.update(view[:count])
            num_bytes += count
            if advance is not None:
                advance(count)
    return FileDigest(num_bytes, sha256.hexdigest())


def digests_of(directory: Path, names: Iterable[str] | None = None) -> dict[str, FileDigest]:
    """The digests of files below `directory` (None: of all). Raises `OSError`."""
    wanted = sorted(files_below(directory) if names is None else names)
    with ThreadPoolExecutor(_threads(len(wanted))) as pool:
        found = pool.map(digest_of_file, (directory / name for name in wanted))
        return dict(zip(wanted, found, strict=True))


def files_below(directory: Path) -> list[str]:
    """The files below a directory, as a `Listing` names them."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def seal(directory: Path, leave_out: Iterable[str] = ()) -> dict[str, FileDigest]:
    """Write `digests.json` of all files below `directory` except `leave_out`, which may be replaced
    later; returns the digests of all files, these and itself included. Raises `OSError`."""
    apart = {DIGESTS_NAME, *leave_out}
    listing = digests_of(directory, set(files_below(directory)) - apart)
    (directory / DIGESTS_NAME).write_text(to_json(listing), encoding="utf-8")
    there = [name for name in apart if (directory / name).is_file()]
    return {**listing, **digests_of(directory, there)}


def to_json(listing: Listing) -> str:
    """The content of a file that holds `listing`."""
    content = {
        name: {"bytes": file.num_bytes, "sha256": file.sha256} for name, file in listing.items()
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_listing(file: Path) -> dict[str, FileDigest]:
    """The list in `file`; also one of an early version, `{name: size}`.

    Raises `UnreadableListing`, and `FileNotFoundError` if there is no such file.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
        if not isinstance(content, dict) or not content:
            raise ValueError("not a list of files")
        return {name: _file_digest(name, value) for name, value in content.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableListing(f"{file.name} cannot be read ({error})") from None


def problems_of(
    directory: Path,
    listing: Listing,
    names: Iterable[str] | None = None,
    *,
    content: bool = True,
    advance: Advance | None = None,
) -> dict[str, str]:
    """What is wrong with the listed files of `directory`: name -> a clause that begins with it.

    `names` restricts the check; one that is not listed is a problem. `content` False compares sizes
    only, which reads nothing. Empty where all files are as they were written.
    """
    wanted = sorted(listing if names is None else names)

    def problem(name: str) -> str | None:
        known = listing.get(name)
        if known is None:
            return f"{name} was not there when the rest was written"
        return _problem(directory / name, name, known, content, advance)

    if not content:  # nothing to wait for
        found = [problem(name) for name in wanted]
    else:
        with ThreadPoolExecutor(_threads(len(wanted))) as pool:
            found = list(pool.map(problem, wanted))
    return {name: what for name, what in zip(wanted, found, strict=True) if what is not None}


def _problem(
    path: Path, name: str, known: FileDigest, content: bool, advance: Advance | None
) -> str | None:
    try:
        size = path.stat().st_size
        if size != known.num_bytes:
            return f"{name} has {size} bytes, {known.num_bytes} were written"
        if not content or known.sha256 is None:
            return None
        found = digest_of_file(path, advance)
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if found == known else changed_content(name, known, found)


def changed_content(name: str, known: FileDigest, found: FileDigest) -> str:
    """The clause for a file of another content."""
    return (
        f"{name} has other bytes than were written (sha256 {str(found.sha256)[:12]}..., expected "
        f"{str(known.sha256)[:12]}...)"
    )


def require_intact(
    export: Path, names: Iterable[str] | None, *, remedy: str
) -> dict[str, FileDigest] | None:
    """Check files of an export; returns its list, None where an early version wrote none.

    A name ending in a slash means all files of that folder, except hidden ones. Raises `UserError`
    that names each damaged file, also for a list that is missing although `export.json` speaks of
    it, and ends with `remedy`. Warns, once for each export, that files cannot be checked.
    """
    try:
        listing = read_listing(export / DIGESTS_NAME)
    except FileNotFoundError:
        if not _promises_digests(export):
            warn_without_digests(export)
            return None
        problems = [f"{DIGESTS_NAME} is missing"]
    except UnreadableListing as error:
        problems = [str(error)]
    else:
        wanted = None if names is None else spelt_out(export, listing, names)
        problems = list(problems_of(export, listing, wanted).values())
        if not problems:
            return listing
    raise UserError(f"the export {export} is damaged: {'; '.join(problems)}. {remedy}")


def _promises_digests(export: Path) -> bool:
    """Whether `export.json` speaks of digests; those of early versions do not."""
    try:
        return f'"{DIGESTS_NAME}"' in (export / "export.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


@cache
def warn_without_digests(directory: Path) -> None:
    """Log, once for each directory, that its files cannot be checked."""
    logger.warning(
        "%s was written by an early version of mmsa, without digests: damage to its weights would "
        "not be noticed",
        directory,
    )


def spelt_out(directory: Path, listing: Listing, names: Iterable[str]) -> set[str]:
    """`names` with each folder (`tokenizer/`) replaced by its files, listed or there; no hidden
    ones, which other programs leave."""
    spelt: set[str] = set()
    for name in names:
        if not name.endswith("/"):
            spelt.add(name)
            continue
        there = (f"{name}{below}" for below in files_below(directory / name))
        spelt |= {path for path in there if not path.rpartition("/")[2].startswith(".")}
        spelt |= {path for path in listing if path.startswith(name)}
    return spelt


def _threads(num_files: int) -> int:
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    return max(1, min(num_files, cores))


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _file_digest(name: str, value: Any) -> FileDigest:
    if type(value) is int:
        return FileDigest(value, None)
    if isinstance(value, dict) and value.keys() == {"bytes", "sha256"}:
        num_bytes, sha256 = value["bytes"], value["sha256"]
        if type(num_bytes) is int and isinstance(sha256, str) and _SHA256.fullmatch(sha256):
            return FileDigest(num_bytes, sha256)
    raise ValueError(f"the entry of {name} is {value!r:.60}")
