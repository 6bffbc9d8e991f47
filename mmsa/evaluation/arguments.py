"""The command line of `evaluate.py`. Imports no torch, so that --help answers at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from mmsa.calibration import FITTED_ON
from mmsa.data.storage.settings import add_cache_option
from mmsa.errors import UserError
from mmsa.extensions import add_import_option
from mmsa.foundation.command_line import CommandParser

PREDICTIONS_FORMAT = "jsonl"  # unless --predictions says another
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Options:
    """How to evaluate and report, the same for all targets."""

    precision: str = "no"
    num_workers: int | None = None  # None: the run's data.num_workers
    file_format: str = "jsonl"
    floors: bool = True
    calibrate: bool = False
    page: bool = True
    private: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Options:
        return cls(
            precision=arguments.precision,
            num_workers=arguments.num_workers,
            file_format=arguments.predictions,
            floors=not arguments.no_floors,
            calibrate=arguments.calibrate,
            page=not arguments.no_page,
            private=arguments.private,
        )


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="evaluate.py",
        description=description,
    )
    parser.add_argument(
        "targets",
        type=Path,
        nargs="+",
        metavar="target",
        help="run directory, export or checkpoint; with --compare or --folds also a report",
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        help="checkpoint of a run: best, last or a step (default: %(default)s)",
    )
    parser.add_argument(
        "--shards", help="packed data, a folder or URL (default: the shards used for training)"
    )
    add_cache_option(parser)
    parser.add_argument(
        "--split", default="test", choices=_SPLITS, help="split to evaluate (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="output directory of the report")
    _add_report_options(parser.add_argument_group("contents of the report"))
    _add_computation_options(parser.add_argument_group("computation"))
    add_import_option(parser)
    return parser


def _add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compare", action="store_true", help="paired tests of several targets on the same samples"
    )
    group.add_argument(
        "--folds",
        action="store_true",
        help="combine the runs of all folds into one result; with --compare the folds of each "
        "configuration, which are then compared",
    )
    group.add_argument(
        "--ensemble",
        action="store_true",
        help="also evaluate the targets as one model: the mean of their probabilities. With "
        "--compare it is compared with them; with --folds there is one for each fold",
    )
    group.add_argument(
        "--metric",
        default="weighted_f1",
        help="metric that sorts the --compare table (default: %(default)s)",
    )
    group.add_argument(
        "--again", action="store_true", help="evaluate again even if the report already exists"
    )
    group.add_argument(
        "--modality-audit",
        action="store_true",
        help="also evaluate with texts or images masked and shuffled: what does each add?",
    )
    group.add_argument(
        "--calibrate",
        action="store_true",
        help=f"fit a temperature and store it in the export (needs --split {FITTED_ON})",
    )
    group.add_argument(
        "--no-floors", action="store_true", help="skip the majority-class and TF-IDF floors"
    )
    group.add_argument(
        "--predictions",
        default=PREDICTIONS_FORMAT,
        choices=("jsonl", "parquet"),
        help="format of the predictions file (default: %(default)s)",
    )
    group.add_argument("--no-page", action="store_true", help="do not write report.html")
    group.add_argument(
        "--private", action="store_true", help="leave texts and images out of report.html"
    )


def add_precision_option(group: argparse._ArgumentGroup) -> None:
    """Add `--precision`, with the values that evaluation and prediction compute in."""
    group.add_argument(
        "--precision",
        default="no",
        choices=("no", "tf32", "bf16", "fp16"),
        help="no: strict float32; tf32: float32 rounded to 10 bits in a GPU's products; bf16, "
        "fp16: autocast (default: %(default)s)",
    )


def _add_computation_options(group: argparse._ArgumentGroup) -> None:
    add_precision_option(group)
    group.add_argument(
        "--batch-size",
        type=_positive_integer,
        help="samples per forward pass (default: eval.batch_size)",
    )
    group.add_argument(
        "--num-workers",
        type=_non_negative_integer,
        help="loader processes per rank (default: data.num_workers)",
    )


def _non_negative_integer(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least {least}")
    return int(text)


def _positive_integer(text: str) -> int:
    return _non_negative_integer(text, least=1)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for arguments that contradict each other, before anything is opened."""
    from mmsa.evaluation.report.predictions_file import check_format  # slow: not for --help

    check_format(arguments.predictions)
    if arguments.calibrate and arguments.split != FITTED_ON:
        raise UserError(
            f"--calibrate fits a temperature on the validation split, never on "
            f"'{arguments.split}'; add --split {FITTED_ON}"
        )
    settings = [
        str(target) for target in arguments.targets if "=" in target.name and not target.exists()
    ]
    if settings:
        raise UserError(
            f"evaluate.py takes no settings, but was given {' '.join(settings)}; choose other "
            "shards with --shards, everything else is in the export's configuration"
        )
    joint = is_joint(arguments)
    if len(arguments.targets) > 1 and not joint:
        raise UserError(
            f"{len(arguments.targets)} targets were given; add --compare, --folds or --ensemble, "
            "or give one"
        )
    if len(arguments.targets) < 2 and joint:
        raise UserError("--compare, --folds and --ensemble need several targets; one was given")
    if arguments.ensemble and arguments.folds and arguments.compare:
        raise UserError(
            "--ensemble --folds --compare together would mix the experiments; make the ensembles "
            "of each with --ensemble --folds, then compare their reports with --folds --compare"
        )
    if arguments.ensemble and (arguments.calibrate or arguments.modality_audit):
        option = "--calibrate" if arguments.calibrate else "--modality-audit"
        raise UserError(
            f"{option} is for one model, and --ensemble for the mean of several; leave one of the "
            "two out. A soup of the same runs is one model: python -m mmsa soup"
        )


def asks_for_more(arguments: argparse.Namespace) -> bool:
    """Whether a report that is there already lacks what is asked for."""
    return bool(
        arguments.again
        or arguments.modality_audit
        or arguments.calibrate
        or arguments.predictions != PREDICTIONS_FORMAT
    )


def is_joint(arguments: argparse.Namespace) -> bool:
    """Whether the reports of all targets are read together in the end."""
    return bool(arguments.compare or arguments.folds or arguments.ensemble)
