"""The hub's directory: an export, byte for byte, with a model card and a handler."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsa.errors import UserError
from mmsa.export import Export, read_export
from mmsa.export_target import EXPORT_FILES, Target, read_export_whole
from mmsa.exporting.hub import handler
from mmsa.exporting.hub.card import CARD_NAME, CardFacts, model_card
from mmsa.exporting.hub.results import reports_of
from mmsa.foundation.digests import files_below, require_intact
from mmsa.foundation.new_directory import new_directory

_HANDLER = "handler.py"
_REQUIREMENTS = "requirements.txt"


@dataclass(frozen=True)
class HubOptions:
    """As on the command line."""

    name: str | None = None  # ORG/NAME
    license: str | None = None
    package: str | None = None
    reports: Sequence[Path] = ()


def write_hub(path: Path, out: Path, options: HubOptions) -> str:
    """Write the directory `out` for the export that `path` refers to; returns what it has, as text.

    Raises `UserError` for a damaged export, and for a report of other weights.
    """

    def read(found: Target) -> tuple[Export, str]:
        export = read_export(found.directory)
        require_intact(found.directory, None, remedy="Copy it again from where it was written")
        return export, _written(found, export, out, options)

    _, (_, said) = read_export_whole(path, "best", read)
    return said


def _written(found: Target, export: Export, out: Path, options: HubOptions) -> str:
    if export.facts.get("extensions"):
        raise UserError(
            f"the model in {found.directory} has parts of other modules "
            f"({', '.join(export.facts['extensions'])}), which the hub does not have; mmsa.load "
            "would not open it there. Publish those modules, and hand the export on by yourself"
        )
    scored = reports_of(found.home, options.reports, export.weights_sha256)
    facts = CardFacts(options.name, options.license, options.package)
    with new_directory(out) as folder:
        for name in files_below(found.directory):
            if any(fnmatch.fnmatch(name, pattern) for pattern in EXPORT_FILES):
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(found.directory / name, folder / name)
        shutil.copyfile(handler.__file__, folder / _HANDLER)
        (folder / CARD_NAME).write_text(model_card(export, scored, facts), encoding="utf-8")
        if options.package:
            (folder / _REQUIREMENTS).write_text(f"{options.package}\n", encoding="utf-8")
    reports = f"{len(scored)} report(s)" if scored else "no report of these weights"
    return f"{out}: the export, {_HANDLER} and {CARD_NAME} with {reports}"
