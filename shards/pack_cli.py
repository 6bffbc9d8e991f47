"""The options of `python -m shards pack` and `merge`, and what runs them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

MAX_PIXELS = 64_000_000  # as in mmsa.data.decoding.posted_images, which takes time to import


def add_pack(pack: argparse.ArgumentParser) -> None:
    """Give the parser of `pack` its options."""
    pack.add_argument("source", metavar="SOURCE", help="raw format; --help-sources lists them")
    pack.add_argument("raw", metavar="RAW", type=Path, help="the raw data: a directory, or a table")
    pack.add_argument("out", metavar="OUT", type=Path, help="directory to be made")
    _add_reading(pack.add_argument_group("reading"))
    _add_splitting(pack.add_argument_group("splitting"))
    _add_form(pack.add_argument_group("packed form"))
    work = pack.add_argument_group("work")
    _add_work(work)
    work.add_argument(
        "--part", metavar="I/N", help="do the I-th of N parts, as a job of its own; then merge"
    )
    pack.set_defaults(run=_run_pack)


def add_merge(merge: argparse.ArgumentParser) -> None:
    """Give the parser of `merge` its options."""
    merge.add_argument("out", metavar="OUT", type=Path, help="OUT of the parts' pack commands")
    merge.add_argument(
        "--remove-parts", action="store_true", help="delete the parts when all is done"
    )
    _add_work(merge)
    merge.set_defaults(run=_run_merge)


class _ListSources(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from shards.sources import SOURCES

        for name, source in SOURCES.items():
            print(f"{name:15} {source.help}")
        parser.exit()


def _add_reading(reading: argparse._ArgumentGroup) -> None:
    reading.add_argument("--help-sources", action=_ListSources, nargs=0, help="the raw formats")
    reading.add_argument(
        "--labels",
        default="fused",
        metavar="RULE",
        help="fused, agree, text, image or soft (default: fused)",
    )
    reading.add_argument(
        "--normalize",
        default="",
        metavar="NAMES",
        help="of urls, mentions, whitespace, with commas (default: texts as they are)",
    )
    for column in ("text", "image", "label", "id"):
        reading.add_argument(f"--{column}-column", metavar="NAME", help="of a table")
    reading.add_argument("--classes", metavar="NAMES", help="class names in order, with commas")
    reading.add_argument("--encoding", metavar="NAME", help="of texts, where not the source's own")
    reading.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="larger pictures are rejected (default: %(default)s)",
    )


def _add_splitting(splitting: argparse._ArgumentGroup) -> None:
    splitting.add_argument(
        "--protocol",
        default="clean",
        metavar="NAME",
        help="rule of the splits; `protocols` lists them (default: clean)",
    )
    splitting.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the split (default: 0)"
    )
    splitting.add_argument("--ratios", metavar="T:V:T", help="train:val:test (default: 8:1:1)")
    splitting.add_argument(
        "--allow-missing",
        action="store_true",
        help="pack a published protocol without all its ids, under another name and hash",
    )


def _add_form(form: argparse._ArgumentGroup) -> None:
    form.add_argument(
        "--image-short-side",
        default="256",
        metavar="FORM",
        help="pixels to which larger pictures are reduced; original; square:PIXELS (default: 256)",
    )
    form.add_argument(
        "--image-quality", type=int, default=90, metavar="Q", help="of JPEG (default: 90)"
    )
    form.add_argument(
        "--samples-per-shard",
        type=int,
        metavar="N",
        help="at most N; default: at most 1000, and 8 shards a split while each keeps 32 samples",
    )
    form.add_argument("--shard-size", metavar="SIZE", help="at most so large, as in 256MB or 1GiB")


def _add_work(work: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    work.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core, 1 if small)"
    )
    work.add_argument("--resume", action="store_true", help="go on with an interrupted packing")
    work.add_argument("--overwrite", action="store_true", help="move an existing OUT aside first")
    work.add_argument("--quiet", action="store_true", help="no progress and no table")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run_pack(args: argparse.Namespace) -> None:
    from shards.packing.pack import pack
    from shards.packing.settings import (
        PackSettings,
        ShardSize,
        parse_image_form,
        parse_part,
        parse_size,
    )
    from shards.sources import SourceOptions
    from shards.splits.protocols import parse_ratios

    settings = PackSettings(
        ratios=parse_ratios(args.ratios) if args.ratios else None,
        protocol=args.protocol,
        seed=args.seed,
        allow_missing=args.allow_missing,
        image=parse_image_form(args.image_short_side, args.image_quality, args.max_pixels),
        size=ShardSize(
            args.samples_per_shard, parse_size(args.shard_size) if args.shard_size else None
        ),
    )
    options = SourceOptions(
        labels=args.labels,
        normalize=_names(args.normalize),
        text_column=args.text_column,
        image_column=args.image_column,
        label_column=args.label_column,
        id_column=args.id_column,
        classes=None if args.classes is None else _names(args.classes),
        encoding=args.encoding,
    )
    result = pack(
        args.source,
        args.raw,
        args.out,
        settings,
        options=options,
        workers=args.workers,
        resume=args.resume,
        part=parse_part(args.part) if args.part else None,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    _tell(args, result.path, result.manifest, result.moved_to)


def _run_merge(args: argparse.Namespace) -> None:
    from shards.packing.merge import merge

    manifest, moved_to = merge(
        args.out,
        workers=args.workers,
        resume=args.resume,
        overwrite=args.overwrite,
        remove_parts=args.remove_parts,
        quiet=args.quiet,
    )
    _tell(args, args.out, manifest, moved_to)


def _tell(
    args: argparse.Namespace, path: Path, manifest: object | None, moved_to: Path | None
) -> None:
    from mmsa.data.manifest import Manifest
    from shards.reports.summary import next_steps, print_summary

    if moved_to:
        print(f"the older {path} was moved to {moved_to}")
    if args.quiet:
        return
    if isinstance(manifest, Manifest):
        print_summary(manifest)
        print(f"packed into {path}; what was dropped is listed in {path}/rejected.jsonl")
        print(next_steps(path))
    else:
        print(f"made {path}")
        out = shlex.quote(str(args.out))
        print(
            f"next, when all {args.part.partition('/')[2]} parts are there: "
            f"python -m shards merge {out}"
        )
