"""The command line of packing: `python -m shards pack | verify | info | ...`."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mmsa.errors import EXIT_USER_ERROR, UserError
from shards import protocols_cli
from shards.pack_cli import add_merge, add_pack

EXIT_FAULTS = 1  # verify found something

# Whatever takes time to import is imported by the command that needs it: --help answers at once.


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments that
    returns the exit code or None for 0."""
    parser = argparse.ArgumentParser(prog="python -m shards", description="raw data to shards")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_pack(commands.add_parser("pack", help="pack a raw data set into tars, once"))
    add_merge(commands.add_parser("merge", help="join the parts made with pack --part"))
    _add_verify(commands.add_parser("verify", help="check a packed data set to the last byte"))
    _add_info(commands.add_parser("info", help="say what a packed data set holds"))
    _add_index(commands.add_parser("index", help="make WebDataset tars of others usable"))
    protocols_cli.add_parsers(commands)
    _add_synthetic(commands.add_parser("synthetic", help="write a made-up raw MVSA-Single set"))
    return parser


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("out", metavar="OUT", type=Path, help="directory made by pack or index")
    verify.add_argument("--deep", action="store_true", help="also decode every picture")
    verify.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    verify.add_argument("--quiet", action="store_true", help="faults alone")
    verify.set_defaults(run=_run_verify)


def _add_info(info: argparse.ArgumentParser) -> None:
    info.add_argument("out", metavar="OUT", type=Path, help="directory made by pack or index")
    info.add_argument("--json", action="store_true", help="to stdout, for programs")
    info.add_argument("--html", type=Path, metavar="FILE", help="as a page with charts")
    info.set_defaults(run=_run_info)


def _add_index(index: argparse.ArgumentParser) -> None:
    index.add_argument("directory", metavar="DIR", type=Path, help="directory of the tars")
    index.add_argument(
        "--image-field",
        default="jpg,jpeg,png,webp,gif,bmp",
        metavar="NAMES",
        help="extensions of the picture, the first that a sample has (default: %(default)s)",
    )
    index.add_argument(
        "--text-field",
        default="txt,text,caption",
        metavar="NAMES",
        help="of the text; json:caption is a name inside a JSON member (default: %(default)s)",
    )
    index.add_argument(
        "--label-field",
        default="json:label,cls",
        metavar="NAMES",
        help="of the class, by name or number; as above (default: %(default)s)",
    )
    index.add_argument(
        "--classes",
        metavar="NAMES",
        help="class names in order, needed where labels are numbers (default: as found, sorted)",
    )
    index.add_argument(
        "--split",
        action="append",
        metavar="NAME=PATTERN",
        help="tars of a split, repeatable (default: by train, val or test in the name)",
    )
    index.add_argument("--dataset", metavar="NAME", help="its name (default: that of DIR)")
    index.add_argument("--overwrite", action="store_true", help="replace earlier index files")
    index.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    index.add_argument("--quiet", action="store_true", help="no progress and no table")
    index.set_defaults(run=_run_index)


def _add_synthetic(synthetic: argparse.ArgumentParser) -> None:
    synthetic.add_argument("out", metavar="OUT_RAW", type=Path, help="directory to be made")
    synthetic.add_argument("--samples", type=int, required=True, metavar="N")
    synthetic.add_argument("--seed", type=int, default=0, metavar="S")
    synthetic.add_argument(
        "--plain", action="store_true", help="labels independent of texts and pictures"
    )
    synthetic.add_argument("--overwrite", action="store_true", help="move an existing one aside")
    synthetic.add_argument("--quiet", action="store_true", help="no progress")
    synthetic.set_defaults(run=_run_synthetic)


def _run_verify(args: argparse.Namespace) -> int:
    from shards.verify import verify

    report = verify(args.out, deep=args.deep, workers=args.workers, quiet=args.quiet)
    for fault in report.faults:
        print(f"fault: {fault}")
    if report.faults:
        print(
            f"{args.out}: {len(report.faults)} {'fault' if len(report.faults) == 1 else 'faults'}"
        )
        return EXIT_FAULTS
    if not args.quiet:
        print(f"{args.out}: {report.num_samples:,} samples in {report.num_shards} shards, no fault")
    return 0


def _run_info(args: argparse.Namespace) -> None:
    from shards.reports.info import run_info

    run_info(args.out, as_json=args.json, html=args.html)


def _run_index(args: argparse.Namespace) -> None:
    from shards.index import IndexSettings, index
    from shards.reports.summary import next_steps, print_summary

    manifest = index(
        args.directory,
        IndexSettings.from_options(args),
        workers=args.workers,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    if not args.quiet:
        print_summary(manifest)
        print(f"indexed {args.directory}; the tars are as they were")
        print(next_steps(args.directory))


def _run_synthetic(args: argparse.Namespace) -> None:
    from shards.synthetic import write_raw

    moved_to = write_raw(
        args.out,
        num_samples=args.samples,
        seed=args.seed,
        plain=args.plain,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    if moved_to:
        print(f"the older {args.out} was moved to {moved_to}")
    if not args.quiet:
        print(f"wrote {args.samples:,} samples to {args.out}")
        print(f"next: python -m shards pack mvsa-single {shlex.quote(str(args.out))} OUT")


def _end(signal_number: int, frame: FrameType | None) -> None:
    # A batch system ends jobs by SIGTERM: raised as an exception, it cleans up as Ctrl-C does.
    raise SystemExit(128 + signal_number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for faults that `verify` found, 2 for a
    `UserError`, 130 after Ctrl-C, 141 where nobody reads what is printed."""
    args = build_parser().parse_args(argv)
    try:
        code: int | None = args.run(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing that looks whole was left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; what is left in stdout's buffer goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code or 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
