"""`python -m mmsa predict EXPORT INPUT --out FILE`: the command line.

Imports torch only when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmsa.data.storage.settings import CacheSettings, add_cache_option, use_cache
from mmsa.errors import UserError
from mmsa.evaluation.arguments import add_precision_option
from mmsa.extensions import add_import_option, import_extensions
from mmsa.foundation.urls import location_of
from mmsa.process import runtime
from mmsa.process.command import Command, run_command
from mmsa.raw_files.text_files import is_text_encoding

DESCRIPTION = (
    "Predicts every row of INPUT and writes it with its label, the confidence and the probability "
    "of each class. INPUT is a table (CSV, TSV, JSONL, Parquet or XLSX), a folder of images with "
    "texts next to them (NAME.jpg, NAME.txt), or packed shards. Rows keep their order; a row that "
    "cannot be predicted keeps its place and has an error. Several GPUs or processes: accelerate "
    "launch -m mmsa predict ... How to: docs/prediction.md."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="EXPORT", help="an export or a run directory")
    parser.add_argument(
        "input",
        type=location_of,
        metavar="INPUT",
        help="table, folder, or packed shards, which may be a URL",
    )
    add_cache_option(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write; its ending says the format: .csv, .tsv, .jsonl or .parquet",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue where an interrupted prediction stopped"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    _add_reading(parser.add_argument_group("how INPUT is read"))
    _add_computation(parser.add_argument_group("computation"))
    add_import_option(parser)
    parser.set_defaults(run=run)


def _add_reading(group: argparse._ArgumentGroup) -> None:
    for what in ("text", "image", "id"):
        group.add_argument(
            f"--{what}-column", metavar="NAME", help=f"column of the {what} (default: found)"
        )
    group.add_argument("--encoding", metavar="NAME", help="of tables and texts (default: utf-8)")
    group.add_argument(
        "--split", metavar="NAME", help="split of packed shards (default: test, or the only one)"
    )


def _add_computation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="rows per forward pass (default: eval.batch_size of the export)",
    )
    group.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="loader processes per process (default: data.num_workers of the export)",
    )
    add_precision_option(group)
    group.add_argument(
        "--uncalibrated", action="store_true", help="leave the temperature of the export out"
    )
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")


def run(arguments: argparse.Namespace) -> int:
    """Predict as the arguments say; returns the exit code."""
    runtime.prepare_process()
    return run_command(lambda command: predict_rows(command, arguments))


def predict_rows(command: Command, arguments: argparse.Namespace) -> None:
    """Refuse what can be refused, then predict and print the summary."""
    out: Path = arguments.out
    _check(arguments)
    if arguments.cache is not None:
        use_cache(CacheSettings(arguments.cache, folders=False))
    runtime.set_up_logging(command.world, None)
    if arguments.resume and out.is_file():
        if command.world.is_main_process:
            print(f"{out} exists already, whole; nothing to resume")
        return
    import_extensions(arguments.imports)
    from mmsa.engines.engine import make_accelerator
    from mmsa.prediction.opened import Options, open_all
    from mmsa.prediction.run import predict

    chosen: dict[str, Any] = {
        one.name: getattr(arguments, one.name, None) for one in fields(Options)
    }
    options = Options(**{**chosen, "calibrated": not arguments.uncalibrated})
    opened = open_all(arguments.export, options, command.world)
    accelerator = command.accelerator = make_accelerator(arguments.precision, timeout_s=_DAY_S)
    summary = predict(opened, options, accelerator, command.world)
    if command.world.is_main_process:
        print(summary)


_DAY_S = 86_400  # how long a process that is done waits for the slowest one


def _check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for options that make no sense, before anything is opened."""
    from mmsa.prediction.outputs import check_ending

    check_ending(arguments.out)
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {value}: expected an integer of at least {least}")
    if arguments.resume and arguments.overwrite:
        raise UserError("--resume continues and --overwrite begins again; choose one of the two")
    if arguments.encoding is not None and not is_text_encoding(arguments.encoding):
        raise UserError(
            f"--encoding {arguments.encoding} is not a known encoding; for example utf-8, gb18030"
        )
    if arguments.out.is_file() and not (arguments.overwrite or arguments.resume):
        raise UserError(f"{arguments.out} exists; add --overwrite to replace it")
