"""The directory in which a packing grows: found again after a kill, taken by one process at a time.

.OUT.packing/settings.json    what is packed, and how
             lock             held while a process is at work
             chunks/          see chunks.py
             done/            one record per finished shard, see write.py
             out/             becomes OUT by a rename, when all is done
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.file_lock import FileLock

_SETTINGS_NAME = "settings.json"


class Resumable(UserError):
    """An error after which what was done stays, for `--resume`."""


def workdir_path(out: Path) -> Path:
    """Where the packing into `out` grows: hidden, beside it, on the same file system."""
    out = Path(os.path.abspath(out))
    return out.parent / f".{out.name}.packing"


@contextmanager
def workdir(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """The working directory for `out`, locked; left where the block ends early, for `resume`.

    Without `resume` it must not exist; with it, one of the same `settings` is gone on with. After a
    `UserError` of a fresh one (but for a `Resumable`) and after success it is removed. Raises
    `UserError` where another process holds it, where it cannot be made, and where its settings
    differ.
    """
    path = workdir_path(out)
    existed = path.is_dir()
    if existed and not resume:
        raise UserError(
            f"an earlier packing of {out} was interrupted; what it did is in {path}. "
            "Go on with --resume, or remove that directory to begin anew"
        )
    try:
        for name in ("chunks", "done", "out"):
            (path / name).mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / "lock")
    except BlockingIOError:
        raise UserError(f"another process is packing into {out} (it holds {path}/lock)") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    with lock:
        try:
            _check_settings(path / _SETTINGS_NAME, settings, out)
            yield path
        except UserError as error:
            if not existed and not isinstance(error, Resumable):
                shutil.rmtree(path, ignore_errors=True)
            raise
        except OSError as error:
            raise Resumable(
                f"{out} could not be written: {error}. What is done is in {path}; go on with "
                "--resume"
            ) from None
        shutil.rmtree(path, ignore_errors=True)


def _check_settings(path: Path, settings: Mapping[str, Any], out: Path) -> None:
    text = json.dumps(settings, sort_keys=True, indent=1) + "\n"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        path.write_text(text, encoding="utf-8")
        return
    except ValueError:
        found = None
    wanted = json.loads(text)
    if found == wanted:
        return
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read; remove {path.parent} to begin anew")
    names = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    shown = "; ".join(f"{n} was {found.get(n)!r}, is {wanted.get(n)!r}" for n in names)
    raise UserError(
        f"the interrupted packing of {out} cannot be gone on with: {shown}. Ask for the same, or "
        f"remove {path.parent} to begin anew"
    )
