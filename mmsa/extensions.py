"""`--import MODULE`: parts of other projects, registered before a command begins.

A flag and never a setting: exports contain their configuration, and opening one must not run code.
An export lists the modules that its model needs instead (`extensions` in `export.json`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mmsa.errors import UserError


def add_import_option(parser: argparse.ArgumentParser, dest: str = "imports") -> None:
    """Add `--import MODULE`, which may be repeated; the parsed attribute is `dest`."""
    parser.add_argument(
        "--import",
        dest=dest,
        action="append",
        default=[],
        metavar="MODULE",
        help="import MODULE first, which registers parts of your own (docs/extending.md)",
    )


def import_extensions(names: Iterable[str]) -> None:
    """Import each of `names`, looked for in the current directory too.

    Raises `UserError` that names the module and the reason where one cannot be imported.
    """
    for name in names:
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.append(os.getcwd())  # last: a file in it must not hide an installed module
        try:
            importlib.import_module(name)
        except UserError as error:
            raise UserError(f"--import {name}: {error}") from None
        except Exception as error:
            raise UserError(
                f"--import {name}: importing it raised {type(error).__name__}: {error}; expected "
                "the dotted name of a module that is installed or in the current directory "
                f"({os.getcwd()}). Try: python -c 'import {name}'"
            ) from error


def take_imports(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the `--import` options off `words`: (modules, other words)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog="--import")
    add_import_option(parser)
    known, others = parser.parse_known_args(list(words))
    return known.imports, others


def as_options(modules: Iterable[str]) -> list[str]:
    """`modules` as the words of a command."""
    return [word for module in modules for word in ("--import", module)]


def check_extensions(facts: dict[str, Any], export: object) -> None:
    """Raise `UserError` where a module that an export's facts list has not been imported."""
    missing = [name for name in facts.get("extensions", []) if name not in sys.modules]
    if missing:
        raise UserError(
            f"the model of {export} has parts from {', '.join(missing)}, which is not imported; "
            f"add {' '.join(as_options(missing))} to the command. In Python: import "
            f"{', '.join(missing)} first. mmsa never imports it by itself, because importing runs "
            "code"
        )
