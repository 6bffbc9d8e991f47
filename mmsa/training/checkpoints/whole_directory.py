"""The directory of a checkpoint while it is written: from a temporary name to a whole one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from mmsa.checkpoint_folders import COMPLETE_NAME, STATE_NAME
from mmsa.export import CHECKPOINT_EXPORT_NAME, WEIGHTS_NAME, seal_export
from mmsa.foundation.atomic_write import (
    flush,
    flush_tree,
    rename_directory,
    save_tensors,
    write_status,
)
from mmsa.foundation.digests import FileDigest, digests_of, files_below, to_json
from mmsa.training.checkpoints.collective_write import remove_leftovers
from mmsa.training.checkpoints.intact import COPY_NAME, OPTIMIZER_NAME

LAST_SAVE_NAME = "last_save.json"


def start_directory(temporary: Path) -> None:
    """Make the directory, and remove what killed writes left next to it."""
    temporary.parent.mkdir(exist_ok=True)  # and not its parents: the run may have been moved
    remove_leftovers(temporary.parent)
    temporary.mkdir()


class SealedMeanwhile:
    """An export that threads flush and hash while the optimizer's state is gathered and written."""

    def __init__(self, threads: ThreadPoolExecutor, checkpoint: Path) -> None:
        export = checkpoint / CHECKPOINT_EXPORT_NAME
        self.threads = threads
        # The system reports an error in writing a file only once, so it must be asked for.
        self.flushed: Future[None] = threads.submit(flush, export / WEIGHTS_NAME)
        self.sealed: Future[dict[str, FileDigest]] = threads.submit(seal_export, export)


def write_rest(
    temporary: Path, slots: Mapping[str, Tensor], content: Mapping[str, Any], run_config: str
) -> None:
    """Write the optimizer's state, `state.json` and `run.yaml`."""
    save_tensors(slots, temporary / OPTIMIZER_NAME)
    (temporary / STATE_NAME).write_text(json.dumps(content, indent=1) + "\n")
    (temporary / COPY_NAME).write_text(run_config, encoding="utf-8")


def complete_directory(
    temporary: Path, final: Path, export: SealedMeanwhile, statistics: Mapping[str, FileDigest]
) -> None:
    """Flush everything in `temporary`, list it in COMPLETE, and give it its final name.

    `statistics` are the digests of files that other ranks wrote.
    """
    hashed = export.threads.submit(digests_of, temporary, [OPTIMIZER_NAME, STATE_NAME, COPY_NAME])
    export.flushed.result()
    sealed = export.sealed.result()
    flush_tree(temporary)
    listing = {f"{CHECKPOINT_EXPORT_NAME}/{name}": digest for name, digest in sealed.items()}
    listing |= {**statistics, **hashed.result()}
    listing |= digests_of(temporary, set(files_below(temporary)) - listing.keys())
    # Last of all files: what it lists is on the disk already.
    (temporary / COMPLETE_NAME).write_text(to_json(dict(sorted(listing.items()))), encoding="utf-8")
    flush(temporary / COMPLETE_NAME)
    flush(temporary)
    # An incomplete one: from a whole one the run would resume.
    shutil.rmtree(final, ignore_errors=True)
    rename_directory(temporary, final)


def note_save(final: Path, step: int, save_s: float) -> None:
    """Write how long a save took; a full disk leaves it out."""
    with suppress(OSError):
        content = {"step": step, "save_s": round(save_s, 3)}
        write_status(final.with_name(LAST_SAVE_NAME), content)
