"""The command line of packing: `python -m shards pack | verify | info | ...`."""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mmsa.data.decoding.limits import MAX_CHARACTERS
from mmsa.data.storage.settings import CacheSettings, add_cache_option, use_cache
from mmsa.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from mmsa.extensions import add_import_option, import_extensions
from mmsa.foundation.closed_stdout import discard_stdout
from mmsa.foundation.command_line import CommandParser
from mmsa.foundation.urls import location_of
from shards import protocols_cli
from shards.pack_cli import add_merge, add_pack

EXIT_FAULTS = 1  # verify found something
# The commands that write, and whose results have their names only once they are whole.
_WHOLE_OR_ABSENT = ("pack", "merge", "push", "index", "synthetic")

# Slow imports are inside the functions that need them, to keep --help fast.


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments that
    returns the exit code or None for 0."""
    parser = CommandParser(prog="python -m shards", description="raw data to shards")
    add_import_option(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_pack(commands.add_parser("pack", help="pack a raw data set into tars"))
    add_merge(commands.add_parser("merge", help="join the parts made with pack --part"))
    _add_push(commands.add_parser("push", help="upload a packed data set to a store"))
    _add_verify(commands.add_parser("verify", help="check a packed data set to the last byte"))
    _add_info(commands.add_parser("info", help="describe a packed data set"))
    _add_index(commands.add_parser("index", help="write the index of existing WebDataset tars"))
    protocols_cli.add_parsers(commands)
    _add_synthetic(commands.add_parser("synthetic", help="write a made-up raw data set"))
    return parser


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("out", metavar="OUT", type=Path, help="directory made by pack or index")
    push.add_argument("url", metavar="URL", help="s3://BUCKET/FOLDER, gs:// or az://")
    push.add_argument("--overwrite", action="store_true", help="replace the set at URL")
    push.add_argument("--quiet", action="store_true", help="no progress bar")
    push.set_defaults(run=_run_push)


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "out", metavar="OUT", type=location_of, help="directory or URL made by pack, index or push"
    )
    add_cache_option(verify)
    images = verify.add_mutually_exclusive_group()
    images.add_argument(
        "--no-decode", action="store_true", help="check digests only, without decoding the images"
    )
    # It once turned decoding on, which is the default now.
    images.add_argument("--deep", action="store_true", help=argparse.SUPPRESS)
    verify.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    verify.add_argument("--quiet", action="store_true", help="print only faults")
    verify.set_defaults(run=_run_verify)


def _add_info(info: argparse.ArgumentParser) -> None:
    info.add_argument(
        "out", metavar="OUT", type=location_of, help="directory or URL made by pack, index or push"
    )
    add_cache_option(info)
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.add_argument("--html", type=Path, metavar="FILE", help="also write a page with charts")
    info.set_defaults(run=_run_info)


def _add_index(index: argparse.ArgumentParser) -> None:
    index.add_argument("directory", metavar="DIR", type=Path, help="directory of the tars")
    index.add_argument(
        "--image-field",
        default="jpg,jpeg,png,webp,gif,bmp",
        metavar="NAMES",
        help="extensions of the image, in order of preference (default: %(default)s)",
    )
    index.add_argument(
        "--text-field",
        default="txt,text,caption",
        metavar="NAMES",
        help="extensions of the text; json:caption is a field of the JSON member "
        "(default: %(default)s)",
    )
    index.add_argument(
        "--label-field",
        default="json:label,cls",
        metavar="NAMES",
        help="extensions of the class, a name or a number; as above (default: %(default)s)",
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
        help="tars of a split, repeatable (default: by train, val or test in the file name)",
    )
    index.add_argument(
        "--dataset", metavar="NAME", help="name of the data set (default: that of DIR)"
    )
    index.add_argument(
        "--keep-missing",
        metavar="MODALITIES",
        help="text, image or text,image: take samples without one (default: an error)",
    )
    index.add_argument(
        "--max-characters",
        type=int,
        default=MAX_CHARACTERS,
        metavar="N",
        help="refuse texts with more characters (default: %(default)s)",
    )
    index.add_argument(
        "--no-decode", action="store_true", help="do not check that every image decodes"
    )
    index.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out samples that do not fit, and list them in rejected.jsonl",
    )
    index.add_argument("--overwrite", action="store_true", help="replace existing index files")
    index.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    index.add_argument("--quiet", action="store_true", help="no progress bar and no table")
    index.set_defaults(run=_run_index)


def _add_synthetic(synthetic: argparse.ArgumentParser) -> None:
    synthetic.add_argument("out", metavar="OUT_RAW", type=Path, help="directory to create")
    synthetic.add_argument("--samples", type=int, required=True, metavar="N")
    synthetic.add_argument("--seed", type=int, default=0, metavar="S")
    synthetic.add_argument(
        "--plain", action="store_true", help="labels independent of texts and images"
    )
    synthetic.add_argument(
        "--overwrite", action="store_true", help="rename an existing OUT_RAW first"
    )
    synthetic.add_argument("--quiet", action="store_true", help="no progress bar")
    synthetic.set_defaults(run=_run_synthetic)


def _run_push(args: argparse.Namespace) -> None:
    from shards.push import push

    sent = push(args.out, args.url, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"{args.url} has this set already" if not sent else f"uploaded {sent} files")
        print(f"next: python -m shards verify {shlex.quote(args.url)}")


def _run_verify(args: argparse.Namespace) -> int:
    from shards.verify import verify

    report = verify(args.out, decode=not args.no_decode, workers=args.workers, quiet=args.quiet)
    for fault in report.faults:
        print(f"fault: {fault}")
    if report.faults:
        print(
            f"{args.out}: {len(report.faults)} {'fault' if len(report.faults) == 1 else 'faults'}"
        )
        return EXIT_FAULTS
    if not args.quiet:
        print(
            f"{args.out}: {report.num_samples:,} samples in {report.num_shards} shards, no faults"
        )
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
    if args.quiet:  # half of a set may be missing
        for warning in manifest.source.get("facts", {}).get("warnings", []):
            print(f"warning: {warning}", file=sys.stderr)
    else:
        print_summary(manifest)
        print(f"indexed {args.directory}; the tars are unchanged")
        print(next_steps(args.directory, manifest))


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
    # A batch system ends jobs with SIGTERM: as an exception it cleans up as Ctrl-C does.
    raise SystemExit(128 + signal_number)


def _import_first(argv: Sequence[str]) -> list[str]:
    """Import the modules that `argv` names with --import, anywhere; returns the other arguments.

    Before parsing, because --help-sources lists the sources while arguments are parsed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_import_option(parser)
    known, others = parser.parse_known_args(_classes_joined(argv))
    import_extensions(known.imports)
    return others


def _classes_joined(argv: Sequence[str]) -> list[str]:
    """`argv` with `--classes -1,0,1` as one argument: argparse would take -1,0,1 for an option."""
    found: list[str] = []
    for argument in argv:
        if found and found[-1] == "--classes" and re.match(r"-[0-9.]", argument):
            found[-1] = f"--classes={argument}"
        else:
            found.append(argument)
    return found


def _can_resume(args: argparse.Namespace | None) -> bool:
    """Whether the command may be repeated with --resume: a packing into a store keeps nothing."""
    return hasattr(args, "resume") and isinstance(getattr(args, "out", None), Path)


def _left_behind(args: argparse.Namespace | None) -> str:
    """What the message on an interruption adds: what is left of the command's work."""
    if args is None or args.command not in _WHOLE_OR_ABSENT:
        return ""
    how = ". Continue by the same command with --resume" if _can_resume(args) else ""
    return f"; nothing incomplete was left under its final name{how}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for faults that `verify` found, 2 for a
    `UserError`, 130 after Ctrl-C, 141 where stdout is closed."""
    args: argparse.Namespace | None = None
    try:
        args = build_parser().parse_args(_import_first(sys.argv[1:] if argv is None else argv))
        if getattr(args, "cache", None) is not None:
            use_cache(CacheSettings(args.cache, folders=False))
        code: int | None = args.run(args)
        sys.stdout.flush()
    except UserError as error:
        # A `ResumableError` speaks of --resume, but for its `anew`.
        told = error if _can_resume(args) else getattr(error, "anew", error)
        print(f"error: {told}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"interrupted{_left_behind(args)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return discard_stdout()
    return code or 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
