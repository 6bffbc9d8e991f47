"""Commands for what training has written: `python -m mmsa predict`, `serve`, `export`, ...

    python -m mmsa predict EXPORT INPUT --out FILE  labels for a table, a folder or packed shards
    python -m mmsa verify RUN|EXPORT|CHECKPOINT    are the files what was written?
    python -m mmsa soup A B C                      the mean of the weights of several exports
    python -m mmsa serve RUN|EXPORT                an HTTP API and a page
    python -m mmsa export RUN|EXPORT --onnx DIR    ONNX; --hub DIR: the Hugging Face hub

Training and evaluation are `train.py` and `evaluate.py`; packing is `python -m shards`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmsa.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from mmsa.foundation.closed_stdout import discard_stdout
from mmsa.foundation.command_line import CommandParser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `run` of what it returns runs the chosen one."""
    parser = CommandParser(
        prog="python -m mmsa", description="Commands for what training has written."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    from mmsa import verify
    from mmsa.exporting import command as export
    from mmsa.prediction import command as predict
    from mmsa.serve import command as serve
    from mmsa.soup import command as soup

    predict.add_arguments(
        commands.add_parser(
            "predict", help="predict every row of your own data", description=predict.DESCRIPTION
        )
    )
    verify.add_arguments(
        commands.add_parser(
            "verify",
            help="compare files with what was written",
            description="Compares every file of a run, an export or a checkpoint with the digest "
            "that was noted when it was written. Exit code 2 if any differs.",
        )
    )
    soup.add_arguments(
        commands.add_parser(
            "soup", help="average the weights of several exports", description=soup.DESCRIPTION
        )
    )
    serve.add_arguments(
        commands.add_parser(
            "serve", help="serve a model over HTTP, with a page", description=serve.DESCRIPTION
        )
    )
    export.add_arguments(
        commands.add_parser(
            "export", help="write a model as ONNX, or for the hub", description=export.DESCRIPTION
        )
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 after a user error or for damaged files, 130 after
    Ctrl-C, 141 where stdout is closed."""
    arguments = build_parser().parse_args(argv)
    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing incomplete was left under its final name", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return discard_stdout()
    return code


if __name__ == "__main__":
    sys.exit(main())
