"""The options of `python -m shards pack` and `merge`, and the functions that run them."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from mmsa.data.decoding.limits import MAX_CHARACTERS, MAX_PIXELS
from mmsa.errors import UserError
from mmsa.extensions import add_import_option
from mmsa.foundation.urls import location_of

# The options that go to the source, and their value where the user gave none.
_SOURCE_OPTIONS = {
    "labels": "fused",
    "normalize": (),
    "text_column": None,
    "image_column": None,
    "label_column": None,
    "id_column": None,
    "split_column": None,
    "classes": None,
    "similar_classes": None,
    "encoding": None,
    "keep_missing": None,
    "dataset": None,
    "max_characters": MAX_CHARACTERS,
}


def add_pack(pack: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    pack.add_argument("source", metavar="SOURCE", help="raw format; --help-sources lists them")
    pack.add_argument("raw", metavar="RAW", type=Path, help="the raw data: a directory, or a table")
    pack.add_argument(
        "out",
        metavar="OUT",
        type=location_of,
        help="directory to create, or s3://, gs:// or az:// to upload the set to",
    )
    add_import_option(pack)
    _add_reading(pack.add_argument_group("reading"))
    _add_splitting(pack.add_argument_group("splitting"))
    _add_form(pack.add_argument_group("packed form"))
    work = pack.add_argument_group("work")
    _add_work(work)
    work.add_argument(
        "--part", metavar="I/N", help="pack the I-th of N parts, as a separate job; then merge"
    )
    pack.set_defaults(run=_run_pack)


def add_merge(merge: argparse.ArgumentParser) -> None:
    """Add the options of `merge`."""
    merge.add_argument("out", metavar="OUT", type=Path, help="OUT of the parts' pack commands")
    merge.add_argument(
        "--remove-parts", action="store_true", help="delete the parts after a successful merge"
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
    reading.add_argument(
        "--help-sources", action=_ListSources, nargs=0, help="list the raw formats and exit"
    )
    reading.add_argument(
        "--labels",
        metavar="RULE",
        help="fused, agree, text, image or soft (default: fused)",
    )
    reading.add_argument(
        "--normalize",
        type=_names,
        metavar="NAMES",
        help="any of urls,mentions,whitespace (default: keep texts as they are)",
    )
    for column in ("text", "image", "label", "id"):
        reading.add_argument(
            f"--{column}-column", metavar="NAME", help=f"the table's column of {column}s"
        )
    reading.add_argument(
        "--split-column",
        metavar="NAME",
        help="the table's column of your own split (default: one called split, if there is one)",
    )
    reading.add_argument(
        "--classes", type=_names, metavar="NAMES", help="class names in order, separated by commas"
    )
    reading.add_argument(
        "--similar-classes",
        metavar="HOW",
        help="merge or keep labels that differ only in case, spaces or number format (default: "
        "refuse them)",
    )
    reading.add_argument(
        "--dataset",
        metavar="NAME",
        help="name of your data set, which begins its keys (default: that of the table or folder)",
    )
    reading.add_argument(
        "--encoding", metavar="NAME", help="encoding of the texts (default: the source's own)"
    )
    reading.add_argument(
        "--keep-missing",
        type=_names,
        metavar="MODALITIES",
        help="text, image or text,image: keep samples without one (default: reject them)",
    )
    reading.add_argument(
        "--max-characters",
        type=int,
        metavar="N",
        help=f"reject texts with more characters (default: {MAX_CHARACTERS})",
    )
    reading.set_defaults(**_SOURCE_OPTIONS)
    reading.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help="reject images with more pixels (default: %(default)s)",
    )


def _add_splitting(splitting: argparse._ArgumentGroup) -> None:
    splitting.add_argument(
        "--protocol",
        metavar="NAME",
        help="rule for the splits; `protocols` lists them (default: clean, or column where a table "
        "has a column split)",
    )
    splitting.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed of the split (default: 0)"
    )
    splitting.add_argument(
        "--ratios",
        metavar="T:V:T",
        help="train:val:test, as in 0:0:1 for a set that is only a test set (default: 8:1:1)",
    )
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
        help="pixels to which larger images are reduced; original; square:PIXELS (default: 256)",
    )
    form.add_argument(
        "--image-quality", type=int, default=90, metavar="Q", help="JPEG quality (default: 90)"
    )
    form.add_argument(
        "--samples-per-shard",
        type=int,
        metavar="N",
        help="at most N samples in a shard (default: at most 1000, and up to 8 shards per split "
        "while each has at least 32 samples)",
    )
    form.add_argument(
        "--shard-size", metavar="SIZE", help="largest size of a shard, as in 256MB or 1GiB"
    )


def _add_work(work: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    work.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes (default: one per core, 1 for a small set)",
    )
    work.add_argument(
        "--allow-dropped",
        action="store_true",
        help="pack even if one reason rejects more than half of the samples",
    )
    work.add_argument("--resume", action="store_true", help="continue an interrupted packing")
    work.add_argument("--overwrite", action="store_true", help="rename an existing OUT first")
    work.add_argument("--quiet", action="store_true", help="no progress bar and no table")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run_pack(args: argparse.Namespace) -> None:
    """Pack into a directory; for a URL into a temporary one, which is then uploaded."""
    if isinstance(args.out, Path):
        _pack_into(args)
        return
    from shards.push import check_writable, push

    url = str(args.out)
    check_writable(url)
    if args.resume or args.part:
        raise UserError(f"--resume and --part need a folder; pack into one, and push it to {url}")
    with tempfile.TemporaryDirectory(prefix="mmsa-pack-") as folder:
        out = Path(folder) / "shards"
        _pack_into(argparse.Namespace(**{**vars(args), "out": out}))
        push(out, url, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"uploaded to {url}\nnext: python -m shards info {shlex.quote(url)}")


def _pack_into(args: argparse.Namespace) -> None:
    from shards.packing.pack import pack
    from shards.packing.settings import (
        PackSettings,
        ShardSize,
        parse_image_form,
        parse_part,
        parse_size,
    )
    from shards.splits.protocols import parse_ratios

    settings = PackSettings(
        ratios=parse_ratios(args.ratios) if args.ratios else None,
        protocol=args.protocol,
        seed=args.seed,
        allow_missing=args.allow_missing,
        allow_dropped=args.allow_dropped,
        image=parse_image_form(args.image_short_side, args.image_quality, args.max_pixels),
        size=ShardSize(
            args.samples_per_shard, parse_size(args.shard_size) if args.shard_size else None
        ),
    )
    values = {name: getattr(args, name) for name in _SOURCE_OPTIONS}
    result = pack(
        args.source,
        args.raw,
        args.out,
        settings,
        options={n: value for n, value in values.items() if value != _SOURCE_OPTIONS[n]},
        workers=args.workers,
        resume=args.resume,
        part=parse_part(args.part) if args.part else None,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    for note in result.notes:
        print(f"note: {note}")
    _report(args, result.path, result.manifest, result.moved_to)


def _run_merge(args: argparse.Namespace) -> None:
    from shards.packing.merge import merge

    manifest, moved_to = merge(
        args.out,
        workers=args.workers,
        resume=args.resume,
        overwrite=args.overwrite,
        allow_dropped=args.allow_dropped,
        remove_parts=args.remove_parts,
        quiet=args.quiet,
    )
    _report(args, args.out, manifest, moved_to)


def _report(
    args: argparse.Namespace, path: Path, manifest: object | None, moved_to: Path | None
) -> None:
    from mmsa.data.manifest import Manifest
    from shards.reports.summary import next_steps, print_summary

    if moved_to:
        print(f"the older {path} was moved to {moved_to}")
    if args.quiet:
        return
    if isinstance(manifest, Manifest):
        print_summary(manifest, directory=path)
        dropped = manifest.source.get("dropped")
        listed = f"; dropped samples are listed in {path}/rejected.jsonl" if dropped else ""
        print(f"packed into {path}{listed}")
        print(next_steps(path, manifest))
    else:
        print(f"wrote {path}")
        out = shlex.quote(str(args.out))
        print(
            f"next, when all {args.part.partition('/')[2]} parts are finished: "
            f"python -m shards merge {out}"
        )
