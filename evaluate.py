"""Evaluate an export or checkpoint on one split: a classification report and its files.

    python evaluate.py runs/first --split test
    accelerate launch --config_file accelerate_config.yaml --num_processes 4 evaluate.py runs/first

    python evaluate.py runs/a runs/b --compare
    python evaluate.py runs/fold-* --folds

The target is a run directory, an export, or RUN/checkpoints/step-N. Any number of processes gives
the same metrics.json, byte for byte. The files go to RUN/reports/SPLIT-CHECKPOINT/, or --out.
What stands in a report, and how to read it: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsa.extensions import add_import_option, import_extensions
from mmsa.process import runtime
from mmsa.process.command import Command, run_command

_SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; returns the exit code (0, or 2 for a user's error)."""
    arguments = build_parser().parse_intermixed_args(argv)
    runtime.prepare_process()
    return run_command(lambda command: evaluate(command, arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets",
        type=Path,
        nargs="+",
        metavar="target",
        help="run directory, export or checkpoint; under --compare and --folds also a report",
    )
    add_import_option(parser)
    parser.add_argument("--checkpoint", default="best", help="of a run: best, last or a step")
    parser.add_argument("--shards", help="packed data (default: that of training)")
    parser.add_argument("--split", default="test", choices=_SPLITS)
    parser.add_argument("--out", type=Path, help="directory of the report's files")
    more = parser.add_argument_group("what to find out")
    several = more.add_mutually_exclusive_group()
    several.add_argument(
        "--compare", action="store_true", help="paired tests of several targets on the same samples"
    )
    several.add_argument(
        "--folds", action="store_true", help="the runs of all folds of a protocol, as one result"
    )
    more.add_argument(
        "--metric",
        default="weighted_f1",
        help="of --compare: sorts its table (default: %(default)s)",
    )
    more.add_argument(
        "--again", action="store_true", help="evaluate also where the same report is there already"
    )
    more.add_argument(
        "--modality-audit",
        action="store_true",
        help="also with texts or pictures masked and shuffled: what does each add?",
    )
    more.add_argument(
        "--calibrate",
        action="store_true",
        help="fit the temperature on --split val and store it in the export",
    )
    more.add_argument("--no-floors", action="store_true", help="leave out majority and TF-IDF")
    more.add_argument(
        "--predictions", default="jsonl", choices=("jsonl", "parquet"), help="form of that file"
    )
    more.add_argument("--no-page", action="store_true", help="write no report.html")
    more.add_argument(
        "--private", action="store_true", help="no texts and no pictures in report.html"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--precision", default="no", choices=("no", "bf16", "fp16"), help="no is float32 (default)"
    )
    work.add_argument(
        "--batch-size", type=_at_least_one, help="samples per forward (default: eval.batch_size)"
    )
    work.add_argument(
        "--num-workers", type=_count, help="loader processes per rank (default: data.num_workers)"
    )
    return parser


def _count(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least {least}")
    return int(text)


def _at_least_one(text: str) -> int:
    return _count(text, least=1)


def evaluate(command: Command, arguments: argparse.Namespace) -> None:
    """The story: what is asked for, the reports that are missing, and what several say together."""
    from mmsa.process.start_clock import StartClock

    start = StartClock("first batch")  # before torch is imported
    from mmsa.engines.engine import make_accelerator
    from mmsa.engines.hardware import device_type
    from mmsa.evaluation.compare import joint_report
    from mmsa.evaluation.modality_audit.audit import check_modalities
    from mmsa.evaluation.requested_targets import requested_targets
    from mmsa.evaluation.split_evaluation import Options, SplitEvaluation

    import_extensions(arguments.imports)
    start.mark("imports")
    runtime.set_up_logging(command.world, None)
    check_arguments(arguments)
    together = arguments.compare or arguments.folds
    asked = requested_targets(
        arguments.targets,
        precision=arguments.precision,
        device_type=device_type(),
        again=arguments.again or arguments.modality_audit or not together,
        checkpoint=arguments.checkpoint,
        shards=arguments.shards,
        split=arguments.split,
        batch_size=arguments.batch_size,
    )
    if together:
        joint_report.check(asked, arguments.metric, folds=arguments.folds)
    for one in asked:
        if arguments.modality_audit and one.subject is not None:
            check_modalities(one.subject)
    options = Options(
        precision=arguments.precision,
        num_workers=arguments.num_workers,
        file_format=arguments.predictions,
        floors=not arguments.no_floors,
        calibrate=arguments.calibrate,
        page=not arguments.no_page,
        private=arguments.private,
    )
    start.mark("export and shards")
    for one in asked:
        if one.subject is None:
            runtime.logger.info("%s: its report is there already, %s", one.name, one.report)
            continue
        runtime.logger.info("evaluating %s", one.name)
        measurement = SplitEvaluation(one.subject, command.world, options)
        start.mark("loader and model")
        accelerator = make_accelerator(arguments.precision)
        command.accelerator = accelerator
        start.mark("process group")
        measurement.batches = start.first_of(measurement.batches)
        predictions, samples_per_rank = measurement.predict(accelerator)
        changed = measurement.predict_changed(accelerator) if arguments.modality_audit else None
        if accelerator.is_main_process:
            out = one.report if together else arguments.out or one.report
            measurement.write_report(accelerator, predictions, samples_per_rank, out, changed)
    if together and command.world.is_main_process:
        joint_report.write(asked, arguments.metric, folds=arguments.folds, out=arguments.out)


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for arguments that do not go together, before anything is opened."""
    from mmsa.calibration import FITTED_ON
    from mmsa.errors import UserError
    from mmsa.evaluation.report.predictions_file import check_format

    check_format(arguments.predictions)
    if arguments.calibrate and arguments.split != FITTED_ON:
        raise UserError(
            f"--calibrate fits a temperature on validation, never on '{arguments.split}'; add "
            f"--split {FITTED_ON}"
        )
    together = arguments.compare or arguments.folds
    settings = [str(one) for one in arguments.targets if "=" in one.name and not one.exists()]
    if settings:
        raise UserError(
            f"evaluate.py takes no settings, and was given {' '.join(settings)}; other shards are "
            "given with --shards, all else stands in the export's configuration"
        )
    if len(arguments.targets) > 1 and not together:
        raise UserError(
            f"{len(arguments.targets)} targets were given; add --compare or --folds, or give one"
        )
    if len(arguments.targets) < 2 and together:
        raise UserError("--compare and --folds need several targets; one was given")


if __name__ == "__main__":
    sys.exit(main())
