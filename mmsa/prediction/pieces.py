"""Results that are done, in a folder next to OUT until OUT is written: what --resume goes by.

    .OUT.partial/settings.json          what is predicted, and how
    .OUT.partial/WINDOW-PIECE.npz       rows (n,), logits (n, C), and errors and cells as JSON

A piece is written whole or not at all. It says nothing of processes, so that a prediction may be
resumed with another number of them.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.parsing import parse_json
from mmsa.prediction.batches import PieceName

_SETTINGS_NAME = "settings.json"
_PIECE = re.compile(r"(\d{6,})-(\d{6,})\.npz")


@dataclass
class Results:
    """Results of some rows: `rows` (n,) are their numbers in the input, `logits` (n, C) float32.

    `errors` and `cells` are by number; a row with an error need not be in `rows`.
    """

    rows: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    cells: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def all_logits(self) -> NDArray[np.float32]:
        """(n, C), in the order of `rows`."""
        return np.concatenate(self.logits) if self.logits else np.empty((0, 0), np.float32)


class Pieces:
    """The folder of one prediction."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f".{out.name}.partial")
        self._lock: FileLock | None = None

    def begin(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Make the folder, or continue with it; call it on the main rank alone.

        Raises `UserError` where another process uses it, where it is of an interrupted prediction
        and neither `resume` nor `overwrite` is set, and where `resume` finds other settings.
        """
        try:
            self._begin(settings, resume=resume, overwrite=overwrite)
        except BlockingIOError:
            raise UserError(f"another process is writing {self.out}; wait for it") from None
        except OSError as error:
            raise UserError(
                f"{self.out} cannot be written ({error.strerror}); choose another --out"
            ) from None

    def _begin(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(exist_ok=True)
        self._lock = FileLock(self.folder)
        known = self._known_settings() if self.done() else None  # nothing to continue without any
        if known is not None and not (resume or overwrite):
            raise UserError(
                f"a prediction of {self.out} was interrupted; add --resume to continue it, or "
                "--overwrite to begin again"
            )
        if known is not None and resume:
            changed = sorted(name for name in settings if known.get(name) != settings[name])
            if changed:
                raise UserError(
                    f"the interrupted prediction of {self.out} cannot be resumed: "
                    f"{', '.join(changed)} changed. Begin again with --overwrite"
                )
            return
        for name in self.folder.iterdir():
            name.unlink()
        write_file(self.folder / _SETTINGS_NAME, json.dumps(settings, indent=1) + "\n")

    def _known_settings(self) -> dict[str, Any] | None:
        try:
            found = parse_json((self.folder / _SETTINGS_NAME).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def done(self) -> frozenset[PieceName]:
        """The pieces that exist."""
        matches = (_PIECE.fullmatch(path.name) for path in self.folder.iterdir())
        return frozenset(PieceName(int(one[1]), int(one[2])) for one in matches if one is not None)

    def write(self, name: PieceName, results: Results) -> None:
        """Write one piece. Raises `UserError` where the disk is full."""
        notes = {"errors": list(results.errors.items()), "cells": list(results.cells.items())}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            rows=np.array(results.rows, dtype=np.int64),
            logits=results.all_logits,
            notes=np.frombuffer(json.dumps(notes).encode("utf-8"), dtype=np.uint8),
        )
        try:
            write_file(self.folder / f"{name}.npz", buffer.getvalue(), make_directory=False)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); free some space and repeat "
                "the command with --resume"
            ) from None

    def read(self, names: Sequence[PieceName]) -> Results:
        """The results of several pieces together. Raises `UserError` for a damaged file."""
        found = Results()
        for name in names:
            path = self.folder / f"{name}.npz"
            try:
                with np.load(path, allow_pickle=False) as piece:
                    notes = parse_json(piece["notes"].tobytes())
                    if len(piece["rows"]):
                        found.rows += piece["rows"].tolist()
                        found.logits.append(piece["logits"])
            except (OSError, ValueError, KeyError) as error:
                raise UserError(
                    f"{path} cannot be read ({error}); remove it and repeat with --resume"
                ) from None
            found.errors |= {int(row): why for row, why in notes["errors"]}
            found.cells |= {int(row): cells for row, cells in notes["cells"]}
        return found

    def remove(self) -> None:
        """Remove the folder: OUT is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()
