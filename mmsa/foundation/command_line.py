"""The parser of the commands: it names what a mistyped command, choice or option is most like, and
its help fits the terminal."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NoReturn

from mmsa.foundation.near_names import did_you_mean, nearest_name

_UNKNOWN = "unrecognized arguments: "  # argparse's words


class ParagraphFormatter(argparse.HelpFormatter):
    """Fills the paragraphs of a description to the terminal's width; indented lines stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kept: list[str] = []
        filled = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        for is_prose, group in groupby(text.strip().splitlines(), _is_prose):
            lines = list(group)
            kept += filled.wrap(" ".join(lines)) if is_prose else lines
        return "\n".join(indent + line for line in kept)


def _is_prose(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(" ")


class CommandParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser`, of which a command and its sub-commands are made."""

    _asked = False  # whether it has parsed: of all sub-commands, the one that was given

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"formatter_class": ParagraphFormatter, **options})

    def options(self) -> list[str]:
        """The options in their long form, as in `--engine`; also those of the given sub-command."""
        found = [name for action in self._actions for name in action.option_strings]
        found = [name for name in found if name.startswith("--")]
        for action in self._actions:
            choices = action.choices if isinstance(action.choices, dict) else {}
            for command in choices.values():
                if isinstance(command, CommandParser) and command._asked:
                    found += command.options()
        return list(dict.fromkeys(found))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._asked = True
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        words = message.removeprefix(_UNKNOWN).split(" ") if message.startswith(_UNKNOWN) else []
        options = [word for word in words if word.startswith("--")]
        if options and (hint := _nearest_option(options[0], self.options())):
            message += f"; {hint}"
        super().error(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            hint = did_you_mean(str(value), map(str, action.choices or ()))
            if hint:
                error.message += f"; {hint}"
            raise


def unknown_option(word: str, known: Sequence[str]) -> str:
    """What is wrong with `word`, which is none of the options `known`: as text, with the nearest of
    them, else all."""
    hint = _nearest_option(word, known) or f"known: {', '.join(known)}"
    return f"unknown option {word.partition('=')[0]}; {hint}"


def _nearest_option(word: str, known: Sequence[str]) -> str:
    """A hint for `word`, which may be `--option=value`; "" where no option is like it."""
    names = {name.lstrip("-"): name for name in known}  # the dashes would make all alike
    near = nearest_name(word.partition("=")[0].lstrip("-"), names)
    return f"did you mean {names[near]}?" if near else ""
