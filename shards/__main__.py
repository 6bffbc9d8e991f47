"""The command line of packing: `python -m shards pack | synthetic | info`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mmsa.errors import EXIT_USER_ERROR, UserError

# Whatever takes time to import is imported by the command that needs it: --help answers at once.


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; each sets `run`, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(prog="python -m shards", description="raw data to shards")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_pack(commands.add_parser("pack", help="pack a raw data set into tars, once"))
    _add_synthetic(commands.add_parser("synthetic", help="write a made-up raw MVSA-Single set"))
    info = commands.add_parser("info", help="say what a packed data set holds")
    info.add_argument("out", metavar="OUT", type=Path, help="directory made by pack")
    info.set_defaults(run=_run_info)
    return parser


def _add_pack(pack: argparse.ArgumentParser) -> None:
    pack.add_argument("source", metavar="SOURCE", help="raw format: mvsa-single")
    pack.add_argument("raw", metavar="RAW", type=Path, help="directory of the raw data")
    pack.add_argument("out", metavar="OUT", type=Path, help="directory to be made")
    pack.add_argument("--protocol", default="random", help="rule of the splits (default: random)")
    pack.add_argument("--seed", type=int, default=0, help="of the random protocol (default: 0)")
    pack.add_argument("--ratios", default="8:1:1", help="train:val:test (default: 8:1:1)")
    pack.add_argument(
        "--image-short-side",
        type=int,
        default=256,
        metavar="PIXELS",
        help="larger pictures are reduced to this, none is enlarged (default: 256)",
    )
    pack.add_argument("--image-quality", type=int, default=90, help="of JPEG (default: 90)")
    pack.add_argument(
        "--samples-per-shard",
        type=int,
        metavar="N",
        help="at most N; default: at most 1000, and 8 shards a split while each keeps 32 samples",
    )
    pack.add_argument("--overwrite", action="store_true", help="move an existing OUT aside first")
    pack.add_argument("--quiet", action="store_true", help="no progress and no table")
    pack.set_defaults(run=_run_pack)


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


def _run_pack(args: argparse.Namespace) -> None:
    from shards.pack import PackSettings, pack
    from shards.protocols import parse_ratios
    from shards.summary import print_summary

    settings = PackSettings(
        ratios=parse_ratios(args.ratios),
        protocol=args.protocol,
        seed=args.seed,
        image_short_side_px=args.image_short_side,
        image_quality=args.image_quality,
        samples_per_shard=args.samples_per_shard,
    )
    result = pack(
        args.source, args.raw, args.out, settings, overwrite=args.overwrite, quiet=args.quiet
    )
    if result.moved_to:
        print(f"the older {args.out} was moved to {result.moved_to}")
    if not args.quiet:
        print_summary(result.manifest)
        print(f"packed into {args.out}; what was dropped is listed in {args.out}/rejected.jsonl")


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
        print(f"next: python -m shards pack mvsa-single {args.out} OUT")


def _run_info(args: argparse.Namespace) -> None:
    from mmsa.data.manifest import load_manifest
    from shards.summary import print_summary

    print_summary(load_manifest(args.out))


def _end(signal_number: int, frame: FrameType | None) -> None:
    # A batch system ends jobs by SIGTERM: raised as an exception, it cleans up as Ctrl-C does.
    raise SystemExit(128 + signal_number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a `UserError`, 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing half done was left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
