"""`python -m launch submit train | evaluate | pack | seeds`: check everything, then submit a job.

    submit train --nodes 2 --gpus-per-node 4 --time 4:00:00 -- \\
        CONFIG section.key=value ...
    submit train --chain train,evaluate --nodes 2 --gpus-per-node 4 -- \\
        CONFIG ...
    submit train --check --nodes 2 --gpus-per-node 4 -- CONFIG ...
    submit evaluate --gpus-per-node 4 -- RUN --split test
    submit pack --parts 8 -- mvsa-single RAW OUT
    submit seeds --seeds 0-4 --gpus-per-node 4 -- CONFIG run.dir=runs/first ...
    submit seeds --configs a.yaml b.yaml --gpus-per-node 4 -- \\
        run.dir=runs/first ...

The script, the configuration and the log go to RUN/slurm/ (for packing: OUT.slurm/). --dry-run
prints script and configuration and submits nothing. Defaults of the options come from
launch/site.yaml, then from the script in launch/slurm/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from launch.site import Site, load_site
from mmsa.errors import UserError
from mmsa.extensions import as_options, take_imports

KINDS = ("train", "evaluate", "pack", "seeds")


_SBATCH_OPTIONS = {
    "mem": "64G",
    "time": "4:00:00",
    "partition": "gpu",
    "account": "my-project",
    "qos": "normal",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="what to submit; its arguments follow after --")
    parser.add_argument(
        "--dry-run", action="store_true", help="check and print everything, submit nothing"
    )
    parser.add_argument(
        "--chain", metavar="KINDS", help="train,evaluate: evaluate when training has finished"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="train: examine the nodes first (launch doctor), and train if there is no error",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("train", "val", "test"),
        help="split to evaluate in a chain (default: %(default)s)",
    )
    parser.add_argument(
        "--parts", type=int, metavar="N", help="number of parts to pack, one job each"
    )
    parser.add_argument("--seeds", metavar="LIST", help="seeds such as 0-4 or 1,7,9, one run each")
    parser.add_argument(
        "--configs",
        nargs="+",
        metavar="FILE",
        help="instead of --seeds: configurations, one run each",
    )
    add_job_options(parser)
    parser.add_argument("--engine", help="ddp, zero1, zero2 or zero3")
    parser.set_defaults(run=_run)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """The options of a job, which `site_of` reads: all but --engine."""
    parser.add_argument(
        "--at-once", type=int, metavar="N", help="maximum number of array tasks that run at a time"
    )
    parser.add_argument(
        "--site", type=Path, metavar="FILE", help="site file to use instead of launch/site.yaml"
    )
    shape = parser.add_argument_group("the job (docs/slurm.md)")
    shape.add_argument("--nodes", type=int, help="nodes (default: 1)")
    shape.add_argument("--gpus-per-node", type=int, help="one process per GPU; 0: CPU processes")
    shape.add_argument(
        "--cpu-processes", type=int, metavar="N", help="processes per node without GPUs"
    )
    shape.add_argument(
        "--cpus-per-task", type=int, metavar="N", help="CPUs per node, shared by its processes"
    )
    for name, example in _SBATCH_OPTIONS.items():
        shape.add_argument(f"--{name}", help=f"as for sbatch, such as {example}")
    shape.add_argument(
        "--sbatch",
        action="append",
        metavar="KEY=VALUE",
        default=[],
        help="any other option of sbatch",
    )


def site_of(arguments: argparse.Namespace) -> Site:
    """The site's defaults and the options of the command line."""
    return load_site(
        arguments.site,
        **{
            key: getattr(arguments, key)
            for key in Site.model_fields
            if key != "sbatch" and getattr(arguments, key, None) is not None
        },
        sbatch=_pairs(arguments.sbatch),
    )


def _run(arguments: argparse.Namespace) -> None:
    from launch import job_builders

    site = site_of(arguments)
    check_directory()
    arguments.rest = [*arguments.rest, *as_options(arguments.imports)]
    if arguments.kind in ("train", "seeds"):
        # As train.py takes it: --config FILE, or FILE alone.
        arguments.rest = [
            word.removeprefix("--config=") for word in arguments.rest if word != "--config"
        ]
    words = take_imports(arguments.rest)[1]
    if not words:
        raise UserError(
            f"nothing to submit: the arguments of {arguments.kind} follow after --, as in: "
            f"python -m launch submit {_EXAMPLES[arguments.kind]}"
        )
    if (arguments.kind == "train" or arguments.seeds) and "=" in words[0]:
        raise UserError(
            f"submit {arguments.kind}: expected a configuration file first after --, found "
            f"{words[0]}; for example: -- launch/runs/full_finetune.yaml ..."
        )
    if arguments.chain and (arguments.kind, arguments.chain) != ("train", "train,evaluate"):
        raise UserError(f"--chain {arguments.chain}: expected submit train --chain train,evaluate")
    if arguments.check and arguments.kind != "train":
        raise UserError(
            f"submit {arguments.kind} --check: --check goes with submit train; otherwise submit "
            "launch/slurm/doctor.sbatch, or run: python -m launch doctor"
        )
    job_builders.SUBMITTERS[arguments.kind](site, arguments)


_EXAMPLES = {
    "train": "train -- launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first",
    "evaluate": "evaluate -- runs/first --split test",
    "pack": "pack --parts 8 -- mvsa-single RAW OUT",
    "seeds": "seeds --seeds 0-4 -- launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/a",
}


def check_directory() -> None:
    """Jobs start in the project's root, so relative paths must be relative to it."""
    from launch.site import ROOT

    if Path.cwd().resolve() != ROOT:
        raise UserError(
            f"submit from the project's root, where jobs start, so that relative paths are right "
            f"(this is {Path.cwd()}); cd {ROOT}"
        )


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--sbatch {word}: expected KEY=VALUE, such as constraint=h100")
        pairs[key] = value
    return pairs
