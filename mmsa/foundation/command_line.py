"""The parser of the commands: it names the option that a mistyped one is most like."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from mmsa.foundation.near_names import nearest_name


class CommandParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser`, of which a command and its sub-commands are made."""

    def options(self) -> list[str]:
        """The options in their long form, as in `--engine`."""
        found = [name for action in self._actions for name in action.option_strings]
        return [name for name in found if name.startswith("--")]


def unknown_option(word: str, known: Iterable[str]) -> str:
    """What is wrong with `word`, which may be `--option=value` and is none of the options `known`:
    as text, with the nearest of them, else all."""
    given = word.partition("=")[0]
    words = {name.lstrip("-"): name for name in known}  # the dashes would make all alike
    near = nearest_name(given.lstrip("-"), words)
    hint = f"did you mean {words[near]}?" if near else f"known: {', '.join(words.values())}"
    return f"unknown option {given}; {hint}"
