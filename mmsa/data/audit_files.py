"""The audit's files: which keys each rank consumed at each step, as read from the tars.

    RUN/audit/from-00000012-rank-00001-of-00004.jsonl    one line per step, as in
    {"step": 13, "keys": [...]}

A launch that resumes from step 12 writes later steps to new files, one per rank. What earlier
launches wrote past step 12 is cut off, because it is not in the weights.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.parsing import parse_json

AUDIT_NAME = "audit"
_FILE_NAME = re.compile(r"from-(\d{8,})-rank-(\d{5,})-of-(\d{5,})\.jsonl$")
_STEP = re.compile(rb'\{"step": (\d+), "keys": \[')


@dataclass(frozen=True, order=True)
class Part:
    """One rank's file of one launch. Steps are counted from 1, as everywhere in a run directory."""

    start_step: int
    world_size: int
    rank: int

    def path(self, run_dir: Path) -> Path:
        name = f"from-{self.start_step:08d}-rank-{self.rank:05d}-of-{self.world_size:05d}.jsonl"
        return run_dir / AUDIT_NAME / name


def parts_of(run_dir: Path) -> list[Part]:
    """All parts of a run's audit, sorted by start, world size and rank; [] if it has none."""
    found = []
    for path in (run_dir / AUDIT_NAME).glob("*.jsonl"):
        match = _FILE_NAME.match(path.name)
        if match:
            start_step, rank, world_size = (int(number) for number in match.groups())
            found.append(Part(start_step, world_size, rank))
    return sorted(found)


class AuditWriter:
    """Appends a line per step to this rank's file; `UserError` if it cannot be written."""

    def __init__(self, run_dir: Path, *, start_step: int, rank: int, world_size: int) -> None:
        """Start this rank's file; the main rank also cuts those of earlier launches."""
        own = Part(start_step, world_size, rank)
        self._path = own.path(run_dir)
        self._file = -1
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if rank == 0:
                for part in parts_of(run_dir):
                    # Each rank truncates its own file of this launch.
                    if (part.start_step, part.world_size) != (start_step, world_size):
                        _cut(part.path(run_dir), start_step)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self._path, flags, 0o666)
        except OSError as error:
            raise self._failed(error) from None

    def write(self, step: int, keys: Sequence[str]) -> None:
        """`keys` of the real samples that this rank consumed in `step`, counted from 1."""
        line = json.dumps({"step": step, "keys": list(keys)}, ensure_ascii=False) + "\n"
        content = line.encode("utf-8")
        try:
            written = os.write(self._file, content)
            while written < len(content):
                written += os.write(self._file, content[written:])
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        """Flush to disk; needed before a checkpoint, which must not be ahead of the audit."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._failed(error) from None

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def _failed(self, error: OSError) -> UserError:
        return UserError(
            f"the audit {self._path} cannot be written ({error.strerror or error}). Free disk "
            "space, or start a run without run.audit"
        )


def _cut(path: Path, last_step: int) -> None:
    """Cut a file after the line of `last_step`; remove it if nothing is left."""
    kept = 0
    with path.open("rb") as file:
        for line in file:
            step = _step_of(line)
            if step is None or step > last_step:
                break
            kept += len(line)
    if kept:
        os.truncate(path, kept)
    else:
        path.unlink()


def _step_of(line: bytes) -> int | None:
    """The step of a complete line; None for a line that was cut by a kill."""
    match = _STEP.match(line)
    return int(match[1]) if match and line.endswith(b"]}\n") else None


def read_part(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(step, keys) of each line, without a last line that was cut by a kill.

    Raises `UserError` for any other line that is not valid.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            step = _step_of(line)
            if step is None and not line.endswith(b"\n"):
                return
            try:
                if step is None:
                    raise ValueError("it does not begin as a line of an audit")
                yield step, [str(key) for key in parse_json(line)["keys"]]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"line {number} of {path} is damaged ({error}): the audit proves nothing. "
                    "Restore the file"
                ) from None
