"""What a study was begun with on its command line, for `--status` and `--final`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json

_NAME = "given.json"


class Given(NamedTuple):
    """The settings (`section.key=value`) and the modules of `--import` of a command."""

    settings: list[str]
    imports: list[str]

    def completed_by(self, before: Given | None) -> Given:
        """With what `before` has of that of which this has none."""
        if before is None:
            return self
        return Given(self.settings or before.settings, self.imports or before.imports)


def remember(out: Path, given: Given) -> None:
    """Note them in the study's directory. Raises `UserError` where it cannot be written."""
    if remembered(out) == given:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / _NAME, json.dumps(given._asdict()) + "\n")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None


def remembered(out: Path) -> Given | None:
    """Those of the last command that trained; None where that is not known."""
    try:
        found = parse_json((out / _NAME).read_text(encoding="utf-8"))
        settings, imports = found["settings"], found.get("imports", [])
        return Given([str(each) for each in settings], [str(each) for each in imports])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
