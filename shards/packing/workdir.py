"""The working directory of a packing: found again after a kill, used by one process at a time.

.OUT.packing/settings.json    what is packed, and how
             lock             held while a process is working
             chunks/          see chunks.py
             done/            one record per finished shard, see write.py
             out/             renamed to OUT at the end
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
from mmsa.foundation.file_lock import FileLock
from mmsa.foundation.parsing import parse_json

_SETTINGS_NAME = "settings.json"
_FORMAT = 2  # of the working directory; another version cannot be resumed


class ResumableError(UserError):
    """An error that keeps the finished work, for `--resume`."""


def workdir_path(out: Path) -> Path:
    """The working directory for `out`: hidden, next to it, so on the same file system."""
    out = Path(os.path.abspath(out))
    return out.parent / f".{out.name}.packing"


@contextmanager
def workdir(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    """The working directory for `out`, locked. It stays where the block is interrupted.

    With `resume` an existing one of the same `settings` is used; without, it must not exist. It is
    removed after success, and a new one also after a `UserError` other than `ResumableError`.
    Raises `UserError` where another process holds it, where it cannot be made, and where its
    settings differ.
    """
    path = workdir_path(out)
    existed = path.is_dir()
    if existed and not resume:
        raise UserError(
            f"an earlier packing of {out} was interrupted; its finished work is in {path}. "
            "Continue with --resume, or remove that directory to start again"
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
            if not existed and not isinstance(error, ResumableError):
                shutil.rmtree(path, ignore_errors=True)
            raise
        except OSError as error:
            raise ResumableError(
                f"{out} could not be written: {error}. The finished work is in {path}; continue "
                "with --resume"
            ) from None
        shutil.rmtree(path, ignore_errors=True)


def _check_settings(path: Path, settings: Mapping[str, Any], out: Path) -> None:
    text = json.dumps({"format": _FORMAT, **settings}, sort_keys=True, indent=1) + "\n"
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        path.write_text(text, encoding="utf-8")
        return
    except ValueError:
        found = None
    wanted = parse_json(text)
    if found == wanted:
        return
    anew = f"remove {path.parent} to start again"
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read; {anew}")
    if found.get("format") != _FORMAT:
        raise UserError(
            f"the interrupted packing of {out} was started by another version of mmsa and cannot "
            f"be resumed; {anew}"
        )
    names = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    changes = "; ".join(f"{n} was {found.get(n)!r}, is {wanted.get(n)!r}" for n in names)
    raise UserError(f"cannot resume packing {out}: {changes}. Use the earlier settings, or {anew}")
