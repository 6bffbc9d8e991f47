"""A new directory that is whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import flush_tree, rename_directory


def check_free(out: Path, option: str = "") -> None:
    """Raise `UserError` where something is at `out` already, or it would lie below a file.

    `option` is how another directory is given, where the user may not have given this one.
    """
    if out.exists() or out.is_symlink():
        by = f" with {option}" if option else ""
        raise UserError(f"{out} exists already; give a new directory{by}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{above} is not a directory; give another place than {out}")


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `out` if nothing fails, and is removed otherwise.

    Directories above it are made. Raises `UserError` where `out` is taken or cannot be written.
    """
    check_free(out)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        flush_tree(temporary)
        rename_directory(temporary, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}); free some space, or choose "
            "another directory"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
