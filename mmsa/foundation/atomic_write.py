"""Files and directories that are whole or absent: written under another name, then renamed.

A reader sees the old content or the new one, and a killed write leaves a temporary name, which the
next write of the same path does not trip over. Elsewhere only appending (ledger, audit) flushes by
itself, and only a directory that is moved out of the way, or a link, is renamed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def flush(path: Path) -> None:
    """Flush a file, or the names in a directory, to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """Flush every file and directory below `directory`, and `directory` itself."""
    for folder, _, names in os.walk(directory):
        for name in names:
            flush(Path(folder) / name)
        flush(Path(folder))


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous CPU tensors as safetensors, readable as any new file is here.

    The library writes through a private temporary file, which leaves mode 0600 whatever the umask:
    colleagues could not read the weights. Not flushed. Raises `OSError`, `RuntimeError` or
    `SafetensorError`.
    """
    from safetensors.torch import save_file

    save_file(dict(tensors), str(path))
    os.chmod(path, _mode_of_new_files(path.parent))


def _mode_of_new_files(directory: Path) -> int:
    # Asked of the file system: the umask of a process cannot be read without changing it, and a
    # directory may have access rules of its own.
    probe = directory / f".mode.{os.getpid()}.{threading.get_ident()}.tmp"
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
        try:
            return stat.S_IMODE(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)
    finally:
        probe.unlink(missing_ok=True)


def rename_directory(written: Path, final: Path) -> None:
    """Rename a directory whose files are flushed to `final`, which must not exist, and flush that.

    Raises `OSError`.
    """
    os.replace(written, final)
    flush(final.parent)


def write_files(
    directory: Path,
    files: Mapping[str, bytes],
    *,
    durable: bool = True,
    make_directory: bool = True,
    first_remove: str | None = None,
) -> None:
    """Write all `files` (name -> content) into `directory`, or none of them.

    Renamed in their order once every one is written; `durable` flushes each before that, so that a
    power failure leaves no file under its name with half its content. Without `make_directory`, a
    `directory` that is missing or is removed meanwhile is a `FileNotFoundError`. `first_remove` is
    the last file, which speaks of the others: the old one goes before they do. Raises `OSError`.
    """
    temporary = {name: directory / f".{name}.{os.getpid()}.tmp" for name in files}
    try:
        if make_directory:
            directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with open(temporary[name], "wb") as stream:
                stream.write(content)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
        if first_remove is not None:
            (directory / first_remove).unlink(missing_ok=True)
        for name, path in temporary.items():
            os.replace(path, directory / name)
    finally:
        for path in temporary.values():
            if path.exists():  # not where it was renamed, nor where mkdir failed
                path.unlink()


def write_file(
    path: Path, content: bytes | str, *, durable: bool = True, make_directory: bool = True
) -> None:
    """Write one file, as `write_files` does; text as UTF-8. Raises `OSError`."""
    encoded = content.encode("utf-8") if isinstance(content, str) else content
    files = {path.name: encoded}
    write_files(path.parent, files, durable=durable, make_directory=make_directory)


def write_status(path: Path, content: Any, *, make_directory: bool = True) -> None:
    """Write JSON that is replaced often and must get through even on a full disk.

    There an existing file is overwritten in place, in the space that it already has. Not flushed: a
    status is worth nothing after a power failure. Raises `OSError` where there is no file yet, and
    as `write_files` does without `make_directory`.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        write_file(path, text, durable=False, make_directory=make_directory)
    except OSError as error:
        if error.errno not in _DISK_FULL or not path.is_file():
            raise
        with path.open("r+b") as file:
            file.write(text.encode("utf-8"))
            file.truncate()
