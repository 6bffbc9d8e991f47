"""The attempts at a run that have ended, and when it is left alone."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.study.workers import POLL_S
from mmsa.errors import EXIT_USER_ERROR
from mmsa.foundation.file_lock import is_locked
from mmsa.foundation.parsing import read_json_objects
from mmsa.process.status import STATUS_NAME, read_status
from mmsa.training.checkpoints.run_lock import LOCK_NAME

MAX_FAILURES = 3  # attempts that fail before a run is left alone


@dataclass(frozen=True)
class Attempts:
    """The attempts in one file, a line each; whoever holds the lock of the run writes it."""

    file: Path

    def all(self) -> list[dict[str, Any]]:
        """What became of each attempt so far, the oldest first."""
        return read_json_objects(self.file)

    def note(self, *, part: str, code: int, why: str, digest: str) -> None:
        """Add an attempt that ended: `part` is train, evaluate or pack."""
        content = {
            "part": part,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "exit_code": code,
            "why": why,
            "study": digest,
        }
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    def note_failure(self, part: str, code: int, run_dir: Path, log: Path, digest: str) -> str:
        """Add an attempt that failed; returns what went wrong, as one line."""
        why = _why_it_failed(part, code, run_dir, log)
        # A launcher makes 1 of the 2 of its ranks.
        refused = read_status(run_dir / STATUS_NAME).get("exit_code")
        code = EXIT_USER_ERROR if part == "train" and refused == EXIT_USER_ERROR else code
        self.note(part=part, code=code, why=why, digest=digest)
        return why

    def failures(self, digest: str) -> list[dict[str, Any]]:
        """The failed attempts with the study as it is: a changed one is tried again."""
        return [
            each for each in self.all() if each.get("exit_code") and each.get("study") == digest
        ]

    def are_given_up(self, digest: str) -> bool:
        """Whether it is not tried again: it was refused (exit code 2), or failed too often."""
        failed = self.failures(digest)
        return len(failed) >= MAX_FAILURES or any(
            each["exit_code"] == EXIT_USER_ERROR for each in failed
        )


def _why_it_failed(part: str, code: int, run_dir: Path, log: Path) -> str:
    """What went wrong, as one line: from `status.json`, else the last line of the log."""
    reason = ""
    if part == "train":
        reason = str(read_status(run_dir / STATUS_NAME).get("reason") or "")
    if not reason:
        with contextlib.suppress(OSError, IndexError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            reason = [line for line in lines if line.strip()][-1]
    return f"{part} ended with {code}: {reason.splitlines()[0] if reason else '?'} ({log})"


def wait_for_orphan(
    run_dir: Path, is_stopping: Callable[[], bool], say: Callable[[str], None]
) -> None:
    """Wait while a run that a killed driver began still saves and ends."""
    path = run_dir / LOCK_NAME
    told = False
    while path.exists() and not is_stopping() and is_locked(path):
        if not told:
            say("is still running; waiting for its end")
            told = True
        time.sleep(POLL_S)
