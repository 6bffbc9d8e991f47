"""Evaluate an export or checkpoint on one split: a classification report and its files.

    python evaluate.py runs/first --split test
    accelerate launch --config_file accelerate_config.yaml --num_processes 4 \\
        evaluate.py runs/first

    python evaluate.py runs/a runs/b --compare
    python evaluate.py runs/fold-* --folds
    python evaluate.py runs/a/fold-* runs/b/fold-* --folds --compare
    python evaluate.py runs/a runs/b runs/c --ensemble

A target is a run directory, an export (ORG/NAME: on the hub), or RUN/checkpoints/step-N. Any number
of processes gives the same metrics.json, byte for byte. The files go to
RUN/reports/SPLIT-CHECKPOINT/, or to --out. How to read a report: docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mmsa.data.storage.settings import CacheSettings, use_cache
from mmsa.evaluation.arguments import (
    Options,
    asks_for_more,
    build_parser,
    check_arguments,
    is_joint,
)
from mmsa.extensions import import_extensions
from mmsa.process import runtime
from mmsa.process.command import Command, run_command
from mmsa.process.start_clock import StartClock


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the arguments say; returns the exit code (0, or 2 for a user error)."""
    arguments = build_parser(__doc__).parse_intermixed_args(argv)
    runtime.prepare_process()
    return run_command(lambda command: evaluate(command, arguments))


def evaluate(command: Command, arguments: argparse.Namespace) -> None:
    """Evaluate every target, then compare their reports or join the folds.

    Comparisons and folds reuse the reports that already exist.
    """
    start_clock = StartClock("first batch")
    check_arguments(arguments)
    # The heavy imports, all in one place: importing torch takes seconds, which --help and a
    # mistyped option need not wait for, and the environment must be prepared before it.
    from mmsa.engines.engine import make_accelerator
    from mmsa.engines.hardware import device_type
    from mmsa.evaluation.compare import joint_report
    from mmsa.evaluation.modality_audit.audit import check_modalities
    from mmsa.evaluation.requested_targets import refuse_to_calibrate_the_hub, requested_targets
    from mmsa.evaluation.split_evaluation import SplitEvaluation

    import_extensions(arguments.imports)
    start_clock.mark("imports")
    runtime.set_up_logging(command.world, None)
    if arguments.cache is not None:
        use_cache(CacheSettings(arguments.cache, folders=False))

    # Everything that can be refused is refused here, before any test split is opened.
    joint, one_result = is_joint(arguments), arguments.compare or arguments.folds
    targets = requested_targets(
        arguments.targets,
        precision=arguments.precision,
        device_type=device_type(),
        reuse_reports=joint and not asks_for_more(arguments),
        checkpoint=arguments.checkpoint,
        shards=arguments.shards,
        split=arguments.split,
        batch_size=arguments.batch_size,
    )
    if arguments.calibrate:
        refuse_to_calibrate_the_hub(targets)
    if joint:
        joint_report.check(
            targets,
            arguments.metric,
            folds=arguments.folds,
            compare=arguments.compare,
            ensemble=arguments.ensemble,
        )
    if arguments.modality_audit:
        for target in targets:
            if target.to_evaluate is not None:
                check_modalities(target.to_evaluate)
    options = Options.from_arguments(arguments)
    start_clock.mark("export and shards")

    for place, target in enumerate(targets):
        if target.to_evaluate is None:
            runtime.logger.info("%s: using its existing report, %s", target.name, target.report)
            continue
        runtime.logger.info("evaluating %s", target.name)
        evaluation = SplitEvaluation(target.to_evaluate, command.world, options)
        start_clock.mark("model")
        accelerator = command.accelerator = make_accelerator(arguments.precision)
        start_clock.mark("process group")
        # A run that is training may have replaced its export: all ranks agree on one model, and
        # from here on everything is named after that one.
        evaluation.begin(accelerator)
        report = evaluation.target.report_directory()
        start_clock.mark("loader")
        evaluation.batches = start_clock.first_of(evaluation.batches)

        # All ranks predict their share and gather the predictions of all.
        predictions, samples_per_rank = evaluation.predict(accelerator)
        changed = evaluation.predict_changed(accelerator) if arguments.modality_audit else None
        if accelerator.is_main_process:
            out = report if joint else arguments.out or report
            evaluation.write_report(accelerator, predictions, samples_per_rank, out, changed)
            targets[place] = target.written_to(out)

    if not command.world.is_main_process:
        return
    if arguments.ensemble:
        out = None if one_result else arguments.out
        ensembles = joint_report.write_ensembles(targets, options, folds=arguments.folds, out=out)
        targets = ensembles if arguments.folds else [*targets, *ensembles]
    if one_result:
        joint_report.write(
            targets,
            arguments.metric,
            folds=arguments.folds,
            compare=arguments.compare,
            out=arguments.out,
        )


if __name__ == "__main__":
    sys.exit(main())
