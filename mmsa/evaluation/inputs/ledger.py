"""The ledger: every opening of the test split, so that a reader knows how often it was looked at.

`test_ledger.jsonl` in a run or export directory, one JSON object a line, only ever appended to. A
score on a test split that was opened twenty times is a validation score; the ledger lets it be
told. An opening that cannot be written down does not take place.
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

LEDGER_NAME = "test_ledger.jsonl"
TEST_SPLIT = "test"

_FIELDS = ("when", "split", "weights_sha256", "shards_digest")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ledger:
    """What a ledger holds: its readable openings in order, and how many lines are damaged."""

    openings: tuple[dict[str, Any], ...]
    num_damaged: int

    @property
    def num_openings(self) -> int:
        """Damaged lines count: each was an opening, only its particulars are lost."""
        return len(self.openings) + self.num_damaged

    @property
    def num_weights(self) -> int:
        """How many different weights are known to have been tested."""
        return len({opening["weights_sha256"] for opening in self.openings})


def record_opening(
    directory: str | os.PathLike[str],
    *,
    split: str,
    weights_sha256: str,
    shards_digest: str,
    when: str | None = None,
) -> int:
    """Write down that the test split is opened now; returns how often it has been, this included.

    To be called by the main rank alone and before the first sample is read. All openings through
    `directory` count, whatever the weights. For another split nothing is written, and the count so
    far is returned. `when` is ISO 8601 in UTC; by default now, to the second. Openings at the same
    time each get a number of their own (on a local file system).

    Raises `UserError` where the line cannot be written: to go on would be an opening that nobody
    is told of. Warns of damaged lines, which it leaves as they are and counts.
    """
    if split != TEST_SPLIT:
        return read_ledger(directory).num_openings
    moment = when if when is not None else datetime.now(UTC).isoformat(timespec="seconds")
    if datetime.fromisoformat(moment).utcoffset() != timedelta(0):
        raise ValueError(f"when={moment!r}; expected a time in UTC, such as 2024-05-01T12:00:00Z")
    line = json.dumps(
        dict(zip(_FIELDS, (moment, split, weights_sha256, shards_digest), strict=True))
    )
    path = Path(directory) / LEDGER_NAME
    try:
        content = _append(path, line.encode("utf-8") + b"\n")
    except OSError as error:
        raise UserError(
            f"the test split was not opened: {path} cannot be written ({error.strerror or error}), "
            "and each opening is recorded there. Make the directory writable or evaluate a copy "
            "of it that is"
        ) from None
    ledger = _parse(content, path)
    return ledger.num_openings


def read_ledger(directory: str | os.PathLike[str]) -> Ledger:
    """The ledger of a run or export directory; an empty one where none was begun.

    Raises `UserError` where there is one that cannot be read; warns of damaged lines.
    """
    path = Path(directory) / LEDGER_NAME
    try:
        return _parse(path.read_bytes(), path)
    except FileNotFoundError:
        return Ledger((), 0)
    except OSError as error:
        raise UserError(f"the ledger {path} cannot be read ({error.strerror or error})") from None


def _append(path: Path, line: bytes) -> bytes:
    """Append `line` by one write; returns the file's content up to and with this line."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            # A torn last line must not take this one with it. The line of another process looks
            # torn as well while the file system grows the file in the midst of it, at a page's
            # end: a blank line comes of that, which counts for nothing.
            line = b"\n" + line
        written = os.write(descriptor, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written; is the disk full?")
        os.fsync(descriptor)
        # With O_APPEND the position now is the end of our own line, wherever that came to stand:
        # two openings at the same time do not get the same number.
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
            opening = json.loads(line)
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
