"""The working directory of a packing: found again after a kill, used by one process at a time.

.OUT.packing/settings.json    what is packed, and how
             lock             held while a process is working
             chunks/          see chunks.py
             done/            one record per finished shard, see write.py
             out/             renamed to OUT at the end; a part's chunks are moved into it first
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
from mmsa.foundation.file_lock import DirectoryLock
from mmsa.foundation.parsing import parse_json
from mmsa.foundation.settings_yaml import flat_keys, in_words

_SETTINGS_NAME = "settings.json"
_FORMAT = 2  # of the working directory; another version cannot be resumed


class ResumableError(UserError):
    """An error that keeps the finished work, for `--resume`.

    `anew` is its message for a command that keeps nothing, as a packing into a store.
    """

    def __init__(self, message: str, *, anew: str) -> None:
        super().__init__(message)
        self.anew = anew


def workdir_path(out: Path) -> Path:
    """The working directory for `out`: hidden, next to it, so on the same file system."""
    out = Path(os.path.abspath(out))
    return out.parent / f".{out.name}.packing"


@contextmanager
def workdir(
    out: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    defaults: Mapping[str, Any] | None = None,
) -> Iterator[Path]:
    """The working directory for `out`, locked. It stays where the block is interrupted.

    With `resume` an existing one of the same `settings` is used; without, it must not exist. It is
    removed after success, and a new one also after a `UserError` other than `ResumableError`.
    Raises `UserError` where another process holds it, where it cannot be made, and where its
    settings differ; `defaults` are the values of options that were not given, for that message.
    """
    path = workdir_path(out)
    existed = path.is_dir()
    if existed and not resume:
        raise UserError(
            f"an earlier packing of {out} did not end; its finished work is in {path}. "
            "Continue with --resume, or remove that directory to start again"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(path, "lock")
    except BlockingIOError:
        raise UserError(f"another process is packing into {out} (it holds {path}/lock)") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    with lock:
        try:
            _make_folders(path)
            _check_settings(path / _SETTINGS_NAME, settings, out, defaults or {})
            yield path
        except UserError as error:
            if not existed and not isinstance(error, ResumableError):
                shutil.rmtree(path, ignore_errors=True)
            raise
        except OSError as error:
            told = f"{out} could not be written: {error}"
            raise ResumableError(
                f"{told}. The finished work is in {path}; continue with --resume", anew=told
            ) from None
        shutil.rmtree(path, ignore_errors=True)


def _make_folders(path: Path) -> None:
    """The folders of the working directory `path`, whose lock is held."""
    moved, chunks = path / "out" / "chunks", path / "chunks"
    if moved.is_dir():  # a part was interrupted after `merge.finish_part` moved them: all are done
        shutil.rmtree(chunks, ignore_errors=True)
        moved.rename(chunks)
    for folder in (chunks, path / "done", path / "out"):
        folder.mkdir(exist_ok=True)


def _changes(
    found: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Each setting that differs, as `labels: fused -> agree`."""
    before, after = ({**defaults, **_by_option(settings)} for settings in (found, wanted))
    return [
        f"{name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _by_option(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by the names that the command line has for them."""
    flat = flat_keys(settings)
    return {name.removeprefix("options."): value for name, value in flat.items()}


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return in_words(settings[name]) if name in settings else "not given"


def _check_settings(
    path: Path, settings: Mapping[str, Any], out: Path, defaults: Mapping[str, Any]
) -> None:
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
    changes = "; ".join(_changes(found, wanted, defaults))
    raise UserError(f"cannot resume packing {out}: {changes}. Use the earlier settings, or {anew}")
