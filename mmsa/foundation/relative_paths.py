"""Relative paths that were not found: where they start, and where they would lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

_PROJECT = Path(__file__).resolve().parent.parent.parent


def where_it_was_looked_for(path: str | os.PathLike[str]) -> str:
    """A remark for a message about a `path` that does not exist: "" for an absolute one.

    A command that was started in another directory than usual is the common cause, so the
    directories above the current one and the project's root are tried too.
    """
    if os.path.isabs(path):
        return ""
    here = Path.cwd()
    looked = f" (a relative path starts from the current directory, {here}"
    for folder in (*here.parents, _PROJECT):
        if (folder / path).exists():
            return f"{looked}; there is one at {folder / path})"
    return f"{looked})"
