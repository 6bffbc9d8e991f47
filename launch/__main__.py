"""Start runs here and on a cluster: `python -m launch run | submit | status | doctor | ...`.

Each command is a module of this package with `add_arguments(parser)`, which also sets `run`: a
function of the parsed arguments that returns the exit code, or None for 0. Words after `--`, such
as a configuration and its overrides, are for another program and passed as `arguments.rest`.
Modules import slow libraries (torch) inside `run`, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from types import ModuleType

from launch import folds, job_hooks, prefetch, run, status, submit
from launch.doctor import command as doctor
from launch.study import command as study
from mmsa.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from mmsa.extensions import add_import_option, import_extensions, take_imports
from mmsa.foundation.closed_stdout import discard_stdout
from mmsa.foundation.command_line import CommandParser

COMMANDS: dict[str, tuple[ModuleType, str]] = {
    "run": (run, "train or evaluate on this machine, with several processes"),
    "submit": (submit, "submit training, evaluation, packing or an array of runs"),
    "status": (status, "show the state of a run"),
    "prefetch": (prefetch, "download weights and tokenizers on the login node"),
    "study": (study, "train all variants of a question and answer it"),
    "folds": (folds, "print the commands of a k-fold experiment"),
    "doctor": (doctor, "examine nodes before a job does, and forecast a run"),
    "job": (job_hooks, "commands for the job scripts"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m launch",
        description="Start runs here, or submit them to SLURM, and follow them: docs/slurm.md",
    )
    add_import_option(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
        )
        module.add_arguments(command)
    return parser


def _passes_on(arguments: argparse.Namespace, word: str) -> bool:
    """Whether a command takes a word that its parser does not know: `launch run` takes all,
    `passes_on` "settings" means what is written as one."""
    passes_on = getattr(arguments, "passes_on", None)
    is_setting = "=" in word and not word.startswith("-")
    return passes_on == "all" or (passes_on == "settings" and is_setting)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a `UserError`, 130 after Ctrl-C, 141
    where stdout is closed."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at + 1 :]
    parser = build_parser()
    arguments, others = parser.parse_known_args(words)
    if unknown := [word for word in others if not _passes_on(arguments, word)]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments.rest = [*others, *rest]
    try:
        import_extensions([*arguments.imports, *take_imports(rest)[0]])
        code: int | None = arguments.run(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return discard_stdout()
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
