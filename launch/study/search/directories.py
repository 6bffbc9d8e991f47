"""The trials of a search as directories, which are its only state.

    OUT/search/search.json          the space, which may not change
    OUT/search/trial-0007/          claimed by whoever made it: mkdir is atomic, also on NFS
        trial.json                  its values and settings
        judged.json                 what the pruner noted at its validations
        result.json                 how it ended: complete, pruned or failed
        run/  run.log  run.jsonl    its run, what the processes printed, its attempts
        lock                        held by the driver that works on it

No file is written by two drivers at a time, and none is shared: whoever holds the lock of a trial
writes it. A trial without a result whose lock is free has lost its driver, and is resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.file_lock import FileLock, is_locked, lock_if_free
from mmsa.foundation.parsing import parse_json

FOLDER = "search"
_PREFIX = "trial-"
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
PRUNING = "pruning"  # decided, while the run still saves and ends


@dataclass(frozen=True)
class TrialDirectory:
    """One trial of a search."""

    number: int  # from 0
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def run_dir(self) -> Path:
        return self.path / "run"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @cached_property
    def _written(self) -> dict[str, dict[str, Any]]:
        """What cannot change any more, once it has been read."""
        return {}

    def lock(self) -> FileLock | None:
        """The right to work on it; None while another driver has it."""
        return lock_if_free(self._lock)

    def is_locked(self) -> bool:
        """Whether a driver works on it."""
        return is_locked(self._lock)

    @property
    def _lock(self) -> Path:
        return self.path / "lock"

    def read(self, name: str) -> dict[str, Any]:
        """One of its JSON files; empty while it is not there."""
        if name in self._written:
            return self._written[name]
        try:
            content = parse_json((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        content = content if isinstance(content, dict) else {}
        if name == "trial.json" or content.get("state") in (COMPLETE, PRUNED, FAILED):
            self._written[name] = content
        return content

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        write_file(self.path / name, json.dumps(content, indent=1) + "\n")

    @property
    def values(self) -> dict[str, Any] | None:
        """Parameter -> value; None until its driver has chosen them."""
        return self.read("trial.json").get("values")

    @property
    def result(self) -> dict[str, Any]:
        return self.read("result.json")

    @property
    def is_finished(self) -> bool:
        return self.result.get("state") in (COMPLETE, PRUNED, FAILED)

    def make_small(self, *, keep_best: bool) -> None:
        """Remove the checkpoints of a run that is not resumed; of a pruned one the exports, too."""
        shutil.rmtree(self.run_dir / "checkpoints", ignore_errors=True)
        if not keep_best:
            with suppress(FileNotFoundError):
                (self.run_dir / "best").unlink()
            shutil.rmtree(self.run_dir / "exports", ignore_errors=True)


@dataclass
class TrialDirectories:
    """All trials of the search in `out`, the directory of its study."""

    out: Path
    _known: dict[int, TrialDirectory] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.out / FOLDER

    def all(self) -> list[TrialDirectory]:
        """Those that have been claimed, by number."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                number = path.name.removeprefix(_PREFIX)
                if path.name.startswith(_PREFIX) and number.isdecimal():
                    self._known.setdefault(int(number), TrialDirectory(int(number), path))
        return [self._known[number] for number in sorted(self._known)]

    def claim(self, up_to: int) -> TrialDirectory | None:
        """Make the next trial's directory; None once there are `up_to`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((one.number for one in self.all()), default=-1) + 1
        while number < up_to:
            one = TrialDirectory(number, self.folder / f"{_PREFIX}{number:04d}")
            with suppress(FileExistsError):  # another driver was first
                one.path.mkdir()
                self._known[number] = one
                return one
            number += 1
        return None

    def check_space(self, content: Mapping[str, Any], *, write: bool) -> None:
        """Raise `UserError` where the folder has trials of another search.

        `content` has `digest` and, for people, what it was made of. With `write` it is written
        where there is none.
        """
        path = self.folder / "search.json"
        try:
            before = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if before is None:
            if write:
                write_file(path, json.dumps(content, indent=1) + "\n")
            return
        if before["digest"] != content["digest"]:
            changed = [
                key for key in content if key != "digest" and before.get(key) != content[key]
            ]
            raise UserError(
                f"{self.folder} has trials of another search: {', '.join(changed)} changed since "
                "they were trained, and their scores would not belong together. Choose another "
                "--out, or undo the change"
            )
