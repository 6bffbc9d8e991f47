"""`RUN/best`: the best export by validation, never ahead of the checkpoint to resume from.

    RUN/exports/step-00000120/    an export that `best` or a checkpoint refers to
    RUN/best -> exports/step-00000120

A new best export gets the link at once; earlier ones stay until a checkpoint refers to the new one.
A run that dies in between resumes with the best of its checkpoint, and `settle_best` restores the
link.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmsa.export import seal_export
from mmsa.foundation.atomic_write import flush, flush_tree, rename_directory
from mmsa.foundation.digests import DIGESTS_NAME
from mmsa.training.checkpoints.collective_write import (
    WRITE_ERRORS,
    remove_by_thread,
    remove_leftovers,
)

LINK_NAME = "best"
FOLDER_NAME = "exports"


def export_path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER_NAME / f"step-{step:08d}"


def write_best(run_dir: Path, step: int, write_export: Callable[[Path], None]) -> Path:
    """Write an export of `step` and point `RUN/best` at it; main rank. Returns its directory.

    `write_export(directory)` leaves sealing the export to this function.
    The link is replaced by a rename, so `best` is a whole export at any moment. Raises one of
    `WRITE_ERRORS` if it cannot be written; the previous one then stays.
    """
    final = export_path(run_dir, step)
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        final.parent.mkdir(exist_ok=True)  # and not its parents: the run may have been moved
        shutil.rmtree(temporary, ignore_errors=True)
        write_export(temporary)
        with ThreadPoolExecutor(1) as thread:  # hashes what the disk is still taking
            sealed = thread.submit(seal_export, temporary)
            flush_tree(temporary)
            sealed.result()
        flush(temporary / DIGESTS_NAME)
        flush(temporary)
        if final.exists():  # of a step that a kill undid: no link points there any more
            shutil.rmtree(final)
        rename_directory(temporary, final)
        _point(run_dir, final)
    except WRITE_ERRORS:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def settle_best(run_dir: Path, best_step: int | None, known_steps: Collection[int]) -> None:
    """Make `RUN/best` the export of `best_step`; remove the exports that no checkpoint refers to.

    On the main rank, when a run starts or resumes: `best_step` is that of its checkpoint (None:
    none yet), `known_steps` are the best steps of all whole checkpoints.
    """
    if best_step is None:
        _remove_best(run_dir)
    else:
        final = export_path(run_dir, best_step)
        link = run_dir / LINK_NAME
        if not link.is_symlink() or link.resolve() != final.resolve():
            _point(run_dir, final)
    keep_exports(run_dir, known_steps)


def keep_exports(run_dir: Path, known_steps: Collection[int]) -> None:
    """Remove all exports except `known_steps`, and what a killed write left; main rank."""
    folder = run_dir / FOLDER_NAME
    remove_leftovers(folder)
    known = {export_path(run_dir, step).name for step in known_steps}
    for path in folder.glob("step-*"):
        if path.name not in known:
            remove_by_thread(path)


def _point(run_dir: Path, final: Path) -> None:
    link = run_dir / f".{LINK_NAME}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(final.relative_to(run_dir), target_is_directory=True)
    if _is_copy(run_dir / LINK_NAME):
        _remove_best(run_dir)
    os.replace(link, run_dir / LINK_NAME)
    flush(run_dir)


def _remove_best(run_dir: Path) -> None:
    """Remove `RUN/best`, a link or a copy of an export; the export that it points at stays."""
    best = run_dir / LINK_NAME
    if not _is_copy(best):
        best.unlink(missing_ok=True)
        return
    hidden = best.with_name(f".{LINK_NAME}.old.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(best, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _is_copy(best: Path) -> bool:
    """Whether `best` is a directory: the run was copied by a program that follows links."""
    return best.is_dir() and not best.is_symlink()
