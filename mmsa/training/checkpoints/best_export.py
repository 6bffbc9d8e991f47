"""`RUN/best`: the best export by validation, and never ahead of the checkpoint to go on from.

    RUN/exports/step-00000120/    an export that `best` or a checkpoint speaks of
    RUN/best -> exports/step-00000120

A new best export takes the link at once; the ones before stay until a checkpoint knows of it. A run
that dies in between goes on with the best of its checkpoint, and `settle_best` puts the link back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from mmsa.atomic_write import flush, flush_tree, rename_directory
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

    The link is replaced by a rename, so that `best` is a whole export at any moment. Raises one of
    `WRITE_ERRORS` where it cannot be written; what was there before stays.
    """
    final = export_path(run_dir, step)
    aside = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        write_export(aside)
        flush_tree(aside)
        if final.exists():  # of a step that was lost with a kill: no link points there any more
            shutil.rmtree(final)
        rename_directory(aside, final)
        _point(run_dir, final)
    except WRITE_ERRORS:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return final


def settle_best(run_dir: Path, best_step: int | None, known_steps: Collection[int]) -> None:
    """Make `RUN/best` the export of `best_step`; remove the exports that no checkpoint speaks of.

    On the main rank, where a run begins or goes on: `best_step` is what its checkpoint believes
    (None: none yet), `known_steps` are the best steps of all whole checkpoints.
    """
    if best_step is None:
        (run_dir / LINK_NAME).unlink(missing_ok=True)
    else:
        final = export_path(run_dir, best_step)
        if (run_dir / LINK_NAME).resolve() != final.resolve():
            _point(run_dir, final)
    keep_exports(run_dir, known_steps)


def keep_exports(run_dir: Path, known_steps: Collection[int]) -> None:
    """Remove all exports but those of `known_steps`, and what a killed write left; main rank."""
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
    os.replace(link, run_dir / LINK_NAME)
    flush(run_dir)
