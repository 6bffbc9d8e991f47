"""The arguments of `train.py`, without its imports: `--help` need not wait for torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmsa.errors import UserError
from mmsa.extensions import add_import_option
from mmsa.foundation.command_line import CommandParser


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of `train.py`: `--config FILE` and any number of `section.key=value`.

    Its `parse_intermixed_args` takes settings on both sides of an option; `parse_args` would not.
    """
    parser = CommandParser(prog="train.py", description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML file; see launch/runs/")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings")
    add_import_option(parser)
    return parser


def take_configuration(file: str | None, words: Sequence[str]) -> tuple[str | None, list[str]]:
    """(configuration, overrides) of `--config` and the other words of a training command.

    A word without `=` is a configuration whose `--config` was left out, if it looks like one.
    Raises `UserError` where there are two.
    """
    others = [word for word in words if not _is_file(word)]
    files = [*([file] if file is not None else []), *filter(_is_file, words)]
    if len(files) > 1:
        raise UserError(
            f"one configuration is expected and {len(files)} are given ({', '.join(files)}); "
            "leave one, and change single settings by section.key=value"
        )
    return (files[0] if files else None), others


def _is_file(word: str) -> bool:
    """Whether a word is meant as a configuration: FILE.yaml, or a file that exists."""
    return "=" not in word and (word.endswith((".yaml", ".yml")) or Path(word).is_file())
