"""Modules of yours that register parts: imported by `--import`, never by a setting."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mmsa.errors import UserError


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Give a command the option `--import MODULE`, repeatable."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a Python module first, which registers your own parts (docs/extending.md)",
    )


def import_extensions(names: Sequence[str]) -> None:
    """Import each module, with the current directory on `sys.path`.

    Raises `UserError` where one cannot be imported.
    """
    if names and "" not in sys.path:
        sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"--import {name}: {error}. Expected a module that is installed or lies in the "
                "current directory, named as in `import my.module`"
            ) from error
