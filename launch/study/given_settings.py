"""The `section.key=value` that a study was begun with on its command line, for `--status`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json

_NAME = "given.json"


def remember(out: Path, given: Sequence[str]) -> None:
    """Note them in the study's directory. Raises `UserError` where it cannot be written."""
    if remembered(out) == list(given):
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / _NAME, json.dumps({"settings": list(given)}) + "\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None


def remembered(out: Path) -> list[str] | None:
    """Those of the last command that trained; None where that is not known."""
    try:
        found = parse_json((out / _NAME).read_text(encoding="utf-8"))
        return [str(setting) for setting in found["settings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
