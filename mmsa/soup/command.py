"""`python -m mmsa soup A B C`: one model from the weights of several.

Imports torch only when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmsa.errors import UserError
from mmsa.extensions import add_import_option, import_extensions

DESCRIPTION = (
    "Averages the weights of several exports of one architecture, and writes the mean as an export "
    "(Wortsman et al., ICML 2022). Scores, and the choice of a greedy soup, use the validation "
    "split alone. In prediction the soup costs as much as one of them."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "targets", type=Path, nargs="+", metavar="RUN|EXPORT", help="two or more, trained alike"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="new directory of the export (default: soup, next to the runs)",
    )
    parser.add_argument(
        "--kind",
        choices=("greedy", "uniform"),
        default="greedy",
        help="greedy: from the best score on, what does not lower the score of the mean; uniform: "
        "the mean of all (default: %(default)s)",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="score on validation that decides (default: train.select_by of the runs)",
    )
    parser.add_argument(
        "--shards", help="where the shards of their training are now (default: the same place)"
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="loader processes (default: data.num_workers)"
    )
    add_import_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the soup of the arguments and print how it was chosen; returns the exit code."""
    if arguments.num_workers is not None and arguments.num_workers < 0:
        raise UserError(f"--num-workers {arguments.num_workers}: expected 0 or more")
    import_extensions(arguments.imports)
    from mmsa.evaluation.scores.metrics import metric_problem
    from mmsa.process import runtime

    problem = None if arguments.metric is None else metric_problem(arguments.metric)
    if problem:
        raise UserError(f"--metric: {problem}")
    runtime.prepare_process()
    runtime.set_up_logging(runtime.world_from_environment(), None)
    from mmsa.soup.make import make_soup

    print(
        make_soup(
            arguments.targets,
            output=arguments.output,
            kind=arguments.kind,
            metric=arguments.metric,
            shards=arguments.shards,
            num_workers=arguments.num_workers,
        )
    )
    return 0
