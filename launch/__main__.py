"""How runs come to a cluster: `python -m launch submit | status | prefetch | folds`.

Each command is a module of this package with `add_parser(commands)`, which sets `run`: a function
of the parsed arguments that returns the exit code or None for 0. What stands behind `--` on the
command line belongs to another program (a configuration and its overrides, say) and is handed over
as `arguments.rest`. A module imports what takes time (torch) inside `run`: --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch import folds, job_hooks, prefetch, status, submit
from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.extensions import add_import_option, import_extensions, take_imports

COMMANDS = (submit, status, prefetch, folds, job_hooks)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Bring runs to machines: docs/slurm.md, docs/evaluation.md",
    )
    add_import_option(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a `UserError`, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, rest = words[:at], words[at + 1 :]
    arguments = build_parser().parse_args(words)
    arguments.rest = rest
    try:
        import_extensions([*arguments.imports, *take_imports(rest)[0]])
        code: int | None = arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
