"""Finding the export that a path refers to, and reading it whole while its run still trains.

A run that is training moves its link `best` and removes old exports and checkpoints, so a name that
is looked up twice can mean two models. Here a name is looked up once, and what is read in one call
is of one export.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mmsa.calibration import CALIBRATION_NAME
from mmsa.checkpoint_folders import is_whole, step_of, whole_checkpoints
from mmsa.errors import UserError
from mmsa.export import (
    CHECKPOINT_EXPORT_NAME,
    CONFIG_NAME,
    FACTS_NAME,
    LABELS_NAME,
    TOKENIZER_NAME,
    WEIGHTS_NAME,
)
from mmsa.foundation.digests import DIGESTS_NAME, UnreadableListing, read_listing
from mmsa.foundation.held_directory import HeldDirectory
from mmsa.hub import hub_folder, is_repository_name
from mmsa.preprocessing import PREPROCESSING_NAME
from mmsa.process.status import STATUS_NAME, read_status

T = TypeVar("T")

# All that an export consists of, in the notation of the hub's library.
EXPORT_FILES = (
    WEIGHTS_NAME,
    CONFIG_NAME,
    LABELS_NAME,
    FACTS_NAME,
    PREPROCESSING_NAME,
    CALIBRATION_NAME,
    DIGESTS_NAME,
    f"{TOKENIZER_NAME}/*",
)

_ATTEMPTS = 30
_LONGEST_WAIT_S = 0.1


@dataclass(frozen=True)
class Target:
    """The export that a path refers to. `home` is the run or export directory it belongs to.

    For an export of the hub, `home` is `hub/ORG--NAME` in the current directory: reports and the
    ledger of the test split go there, because its own directory is the hub library's cache. Its
    revisions share the ledger, and the name says which revision was given.
    """

    directory: Path  # no link: `best` may be replaced at any moment
    home: Path
    name: str  # best, step-00000120, or "export"; of the hub also "export@REVISION"
    from_hub: bool = False

    def make_home(self) -> Path:
        """`home`, which for an export of the hub may not be there yet."""
        if self.from_hub:
            self.home.mkdir(parents=True, exist_ok=True)
        return self.home


def resolve_export(path: Path, checkpoint: str = "best") -> Target:
    """Find the export that `path` (run, export or checkpoint directory) refers to.

    A path that does not exist may be an export on the Hugging Face hub, `ORG/NAME[@REVISION]`,
    which is fetched. `checkpoint` chooses inside a run: best, last, or a step number. Raises
    `UserError` that lists what exists if it is not found.
    """
    if is_repository_name(str(path)):
        return _fetched(str(path))
    if (path / FACTS_NAME).is_file():
        return _target(path)
    if is_whole(path) and (path / CHECKPOINT_EXPORT_NAME / FACTS_NAME).is_file():
        return _target(path / CHECKPOINT_EXPORT_NAME)
    if not (path / CONFIG_NAME).is_file():
        raise UserError(
            _why_no_model(path)
            or f"{path} is not a run directory, an export or a complete checkpoint; "
            "give the run.dir of a training run"
        )
    if checkpoint == "best":
        best = _followed(path / "best")
        if (best / FACTS_NAME).is_file():
            return Target(best, path, "best")
        raise UserError(
            _why_no_model(path) or f"{path} has no best export yet: it has not validated yet"
        )
    whole = whole_checkpoints(path)
    wanted = whole[:1] if checkpoint == "last" else []
    if checkpoint.isdecimal():
        wanted = [folder for folder in whole if step_of(folder) == int(checkpoint)]
    if not wanted:
        steps = ", ".join(str(step_of(folder)) for folder in reversed(whole)) or "none"
        raise UserError(
            (None if whole else _why_no_model(path))
            or f"{path} has no checkpoint '{checkpoint}'; use best, last or one of its steps "
            f"({steps})"
        )
    return Target(wanted[0] / CHECKPOINT_EXPORT_NAME, path, wanted[0].name)


def _fetched(repository: str) -> Target:
    """The export `ORG/NAME[@REVISION]` of the hub. No file is fetched that an export does not
    have: no code and no pickle."""
    directory = hub_folder(repository, EXPORT_FILES, is_whole=_is_whole_export)
    if not (directory / FACTS_NAME).is_file():
        raise UserError(
            f"{repository} is on the hub, but it is not an export of mmsa: it has no {FACTS_NAME}"
        )
    place, _, revision = repository.replace("/", "--").partition("@")
    name = f"export@{revision}" if revision else "export"
    return Target(directory, Path("hub") / place, name, from_hub=True)


def _is_whole_export(directory: Path) -> bool:
    """Whether all files that an export lists are there; their content is compared when read."""
    try:
        listing = read_listing(directory / DIGESTS_NAME)
    except (OSError, UnreadableListing):
        return False
    return all((directory / name).is_file() for name in listing)


def _followed(link: Path) -> Path:
    """The directory that a link points to, looked up once; `link` itself if it is none."""
    try:
        return link.parent / os.readlink(link)
    except OSError:
        return link


def _why_no_model(run_dir: Path) -> str | None:
    """Why a run without a model has none, from its `status.json`; None if it did not fail."""
    status = read_status(run_dir / STATUS_NAME)
    endings = {"failed": ("failed", "Mend that and repeat"), "preempted": ("was stopped", "Repeat")}
    if status.get("state") not in endings:
        return None
    ended, what_to_do = endings[status["state"]]
    reason = str(status.get("reason") or "no reason is recorded").rstrip(".")
    return (
        f"{run_dir} has no model to evaluate: its training {ended} at step "
        f"{status.get('step', 0)} ({reason}). {what_to_do} the training command"
    )


def _target(export: Path) -> Target:
    """The export at `export` and the run that contains it, whatever path was given."""
    real = export.resolve()
    directory = real if export.is_symlink() else export
    if real.name == CHECKPOINT_EXPORT_NAME and real.parents[1].name == "checkpoints":
        return Target(directory, real.parents[2], real.parent.name)
    if real.parent.name == "exports" and (real.parents[1] / CONFIG_NAME).is_file():
        by_link = export.is_symlink() and export.name == "best"  # which may have moved since
        best = by_link or (real.parents[1] / "best").resolve() == real
        return Target(directory, real.parents[1], "best" if best else real.name)
    return Target(directory, export, "export")


class Replaced(Exception):
    """The export was removed or replaced while it was read."""


def read_export_whole(
    path: Path,
    checkpoint: str,
    read: Callable[[Target], T],
    *,
    first: Target | None = None,
) -> tuple[Target, T]:
    """(the export that `path` refers to, what `read` made of it), all of it from one export.

    `path` and `checkpoint` are looked up as in `resolve_export`, and again if the export vanishes
    while it is read. `first`, an earlier answer, is tried before that. `read` gets an export whose
    directory is no link; it may be called several times and must keep nothing of a call that
    failed. Raises what `read` raises for an export that is in its place, and `UserError` if the
    run removes each export before it is read.
    """
    for attempt in range(_ATTEMPTS):
        source = first if first is not None and not attempt else _resolved(path, checkpoint)
        try:
            return source, read_in_place(source, read)
        except Replaced:
            time.sleep(min(0.01 * attempt, _LONGEST_WAIT_S))
    raise UserError(
        f"{path}: its run removed the export '{checkpoint}' {_ATTEMPTS} times while it was being "
        "read. Repeat the command when the run has ended or validates less often, or keep more "
        "checkpoints (train.keep_checkpoints)"
    )


def read_in_place(source: Target, read: Callable[[Target], T]) -> T:
    """What `read` makes of the export; raises `Replaced` if that was not there all the time."""
    with HeldDirectory(source.directory) as held:
        if not held.is_there():
            raise Replaced
        try:
            result = read(source)
        except Exception:
            # An error of an export that is still there is the export's own.
            if held.is_there():
                raise
            raise Replaced from None
        if not held.is_there():
            raise Replaced
        return result


def _resolved(path: Path, checkpoint: str) -> Target:
    """`resolve_export`, tried again: between two of its looks the run may have moved on."""
    try:
        return resolve_export(path, checkpoint)
    except UserError:
        time.sleep(0.05)
        return resolve_export(path, checkpoint)
