"""Directories that are complete or absent: written under another name, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation import atomic_write

# Files that show that a directory was made by packing or is a raw set, and may be renamed.
_OURS = ("manifest.json", "labelResultAll.txt", "part.json")


@dataclass
class NewDirectory:
    """`directory` is to be filled; after the block `moved_to` is where an older one was moved."""

    directory: Path
    moved_to: Path | None = None


@contextmanager
def new_directory(target: Path, *, overwrite: bool, flush: bool = True) -> Iterator[NewDirectory]:
    """A new directory next to `target`, which is renamed to `target` when the block succeeds.

    Where the block fails or is interrupted, the directory is removed and `target` is unchanged.
    With `overwrite` an existing `target` is moved to `TARGET.old` (or `.old-N`), never deleted.
    `flush` brings every file to the disk before the rename, so that a power failure leaves no
    incomplete file under its final name; thousands of small files take seconds. Raises `UserError`
    where `target` exists otherwise, and where the disk refuses.
    """
    target = Path(os.path.abspath(target))
    refuse_existing(target, overwrite=overwrite)
    try:
        new = NewDirectory(_fresh(target, f".{target.name}.tmp-{os.getpid()}", create=True))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield new
        new.moved_to = put_in_place(new.directory, target, overwrite=overwrite, flush=flush)
    except OSError as error:
        shutil.rmtree(new.directory, ignore_errors=True)
        raise UserError(f"{target} could not be written: {error}. It was not created") from None
    except BaseException:  # Ctrl-C too: nothing unfinished may stay
        shutil.rmtree(new.directory, ignore_errors=True)
        raise


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `UserError` where `target` exists and may not be renamed."""
    if not os.path.lexists(target):
        return
    ours = any((target / name).is_file() for name in _OURS) or _is_empty(target)
    if ours and not overwrite:
        raise UserError(
            f"{target} already exists. Give another path, or --overwrite to rename the existing one"
        )
    if not ours:
        raise UserError(
            f"{target} already exists, and --overwrite does not apply: it contains neither "
            f"shards ({_OURS[0]}) nor a raw data set ({_OURS[1]}). Give another path"
        )


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(target.iterdir())


def _fresh(target: Path, name: str, *, create: bool) -> Path:
    """An unused path next to `target`: `name`, else `name-1`, `name-2` and so on."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in count():
        path = target.parent / (f"{name}-{number}" if number else name)
        if os.path.lexists(path):
            continue
        if create:
            path.mkdir()
        return path
    raise AssertionError


def put_in_place(
    directory: Path, target: Path, *, overwrite: bool, flush: bool = True
) -> Path | None:
    """Rename the finished `directory` to `target`, on the same file system.

    `overwrite` and `flush` as in `new_directory`. Returns where an older `target` was moved.
    """
    target = Path(os.path.abspath(target))
    if flush:
        atomic_write.flush_tree(directory)
    refuse_existing(target, overwrite=overwrite)
    moved_to = None
    try:
        if os.path.lexists(target):
            moved_to = _fresh(target, f"{target.name}.old", create=False)
            target.rename(moved_to)
        directory.rename(target)
    except BaseException:
        if moved_to is not None and moved_to.exists() and not target.exists():
            moved_to.rename(target)
        raise
    atomic_write.flush(target.parent)
    return moved_to
