"""The ledger records every opening of the test split, so that readers know how often it was used.

It is `test_ledger.jsonl` in a run or export directory: one JSON object per line, append-only. A
score on a test split that was opened twenty times is a validation score; the ledger shows it. If an
opening cannot be recorded, the split is not opened.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json

LEDGER_NAME = "test_ledger.jsonl"
TEST_SPLIT = "test"

_FIELDS = ("when", "split", "weights_sha256", "shards_digest")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ledger:
    """The contents of a ledger: its readable openings in order, and the number of damaged lines."""

    openings: tuple[dict[str, Any], ...]
    num_damaged: int

    @property
    def num_openings(self) -> int:
        """Includes damaged lines: each was an opening whose details are lost."""
        return len(self.openings) + self.num_damaged

    def openings_of(self, shards_digest: str) -> int:
        """Openings of the test split of one packed data set; a damaged line may be one of it."""
        own = [one for one in self.openings if one["shards_digest"] == shards_digest]
        return len(own) + self.num_damaged


def record_opening(
    directory: str | os.PathLike[str],
    *,
    split: str,
    weights_sha256: str,
    shards_digest: str,
    when: str | None = None,
) -> int:
    """Record that the test split is opened now; returns how often that of this data was opened.

    Call it on the main rank only, before the first sample is read. The count includes this opening
    and all that are recorded in `directory` for these shards, whatever the weights: the test split
    of other data is another one. For another split it records nothing and returns the count so far.
    `when` is ISO 8601 in UTC, by default the current second. Concurrent openings get different
    numbers (on a local file system).

    Raises `UserError` if the line cannot be written, because the opening would go unrecorded. Warns
    about damaged lines, which are kept and counted.
    """
    if split != TEST_SPLIT:
        return read_ledger(directory).openings_of(shards_digest)
    moment = when if when is not None else datetime.now(UTC).isoformat(timespec="seconds")
    if datetime.fromisoformat(moment).utcoffset() != timedelta(0):
        raise ValueError(f"when={moment!r}; expected a UTC time, such as 2024-05-01T12:00:00Z")
    line = json.dumps(
        dict(zip(_FIELDS, (moment, split, weights_sha256, shards_digest), strict=True))
    )
    path = Path(directory) / LEDGER_NAME
    try:
        content = _append(path, line.encode("utf-8") + b"\n")
    except OSError as error:
        raise UserError(
            f"the test split was not opened: {path} cannot be written ({error.strerror or error}), "
            "and each opening is recorded there. Make the directory writable or evaluate a "
            "writable copy of it"
        ) from None
    return _parse(content, path).openings_of(shards_digest)


def read_ledger(directory: str | os.PathLike[str]) -> Ledger:
    """The ledger of a run or export directory; empty if there is no file.

    Raises `UserError` if the file cannot be read; warns about damaged lines.
    """
    path = Path(directory) / LEDGER_NAME
    try:
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        return Ledger((), 0)
    except OSError as error:
        raise UserError(f"the ledger {path} cannot be read ({error.strerror or error})") from None


def _append(path: Path, line: bytes) -> bytes:
    """Append `line` in one write; returns the file's contents up to and including this line."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # Keep a torn last line separate from this one. A line that another process is just
            # writing can look torn too, at a page boundary: that adds a blank line, which does not
            # count.
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written; is the disk full?")
        os.fsync(descriptor)
        # With O_APPEND the position is now the end of our own line, wherever it was appended, so
        # concurrent openings get different numbers.
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        return os.pread(descriptor, end, 0)
    finally:
        os.close(descriptor)


def _parse(content: bytes, path: Path) -> Ledger:
    openings: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            opening = parse_json(line)
        except ValueError:
            opening = None
        if isinstance(opening, dict) and all(isinstance(opening.get(f), str) for f in _FIELDS):
            openings.append(opening)
        else:
            damaged.append(number)
    if damaged:
        _logger.warning(
            "%s: %d damaged line(s), the first is line %d; each counts as an opening of the test "
            "split by unknown weights",
            path,
            len(damaged),
            damaged[0],
        )
    return Ledger(tuple(openings), len(damaged))
