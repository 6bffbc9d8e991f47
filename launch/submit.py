"""`python -m launch submit train | evaluate | pack | seeds`: a job, with everything checked before.

    submit train --nodes 2 --gpus-per-node 4 --time 4:00:00 -- CONFIG section.key=value ...
    submit train --chain train,evaluate --nodes 2 --gpus-per-node 4 -- CONFIG ...
    submit evaluate --gpus-per-node 4 -- RUN --split test
    submit pack --parts 8 -- mvsa-single RAW OUT
    submit seeds --seeds 0-4 --gpus-per-node 4 -- CONFIG run.dir=runs/first ...
    submit seeds --configs a.yaml b.yaml --gpus-per-node 4 -- run.dir=runs/first ...

The script and the configuration, filled in, go to RUN/slurm/ (of a packing: OUT.slurm/), and so
does the log. --dry-run shows them and does nothing. Options left out: launch/site.yaml, then the
script in launch/slurm/.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from launch.site import Site, load_site
from mmsa.errors import UserError
from mmsa.extensions import take_imports

KINDS = ("train", "evaluate", "pack", "seeds")


def add_parser(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="submit training, evaluation, packing or seeds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    submit.add_argument("kind", choices=KINDS)
    submit.add_argument("--dry-run", action="store_true", help="check, show, submit nothing")
    submit.add_argument(
        "--chain", metavar="KINDS", help="train,evaluate: evaluate when training is done"
    )
    submit.add_argument(
        "--split",
        default="test",
        choices=("train", "val", "test"),
        help="of a chain's evaluation (default: test)",
    )
    submit.add_argument("--parts", type=int, metavar="N", help="of a packing, a job each")
    submit.add_argument("--seeds", metavar="LIST", help="as in 0-4 or 1,7,9: a run each")
    submit.add_argument(
        "--configs", nargs="+", metavar="FILE", help="instead of --seeds: a run each"
    )
    submit.add_argument("--at-once", type=int, metavar="N", help="tasks of an array, at most")
    submit.add_argument("--site", type=Path, metavar="FILE", help="instead of launch/site.yaml")
    shape = submit.add_argument_group("the job (docs/slurm.md)")
    shape.add_argument("--nodes", type=int)
    shape.add_argument("--gpus-per-node", type=int, help="a process each; 0: CPU processes")
    shape.add_argument("--cpu-processes", type=int, metavar="N", help="per node, without GPUs")
    shape.add_argument("--cpus-per-task", type=int, metavar="N", help="of a node")
    for name in ("mem", "time", "partition", "account", "qos"):
        shape.add_argument(f"--{name}")
    shape.add_argument("--engine", help="ddp, zero1, zero2 or zero3")
    shape.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", default=[], help="any option of sbatch"
    )
    submit.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from launch import job_builders

    site = load_site(
        arguments.site,
        **{
            key: getattr(arguments, key)
            for key in Site.model_fields
            if key != "sbatch" and getattr(arguments, key, None) is not None
        },
        sbatch=_pairs(arguments.sbatch),
    )
    _check_place()
    words = take_imports(arguments.rest)[1]
    if not words:
        raise UserError(
            f"nothing to submit: what {arguments.kind} is about stands behind --, as in: "
            f"python -m launch submit {_EXAMPLES[arguments.kind]}"
        )
    if (arguments.kind == "train" or arguments.seeds) and "=" in words[0]:
        raise UserError(
            f"submit {arguments.kind}: a configuration stands first behind --, found "
            f"{words[0]}; add one, as in -- launch/runs/full_finetune.yaml ..."
        )
    if arguments.chain and (arguments.kind, arguments.chain) != ("train", "train,evaluate"):
        raise UserError(f"--chain {arguments.chain}: expected submit train --chain train,evaluate")
    job_builders.SUBMITTERS[arguments.kind](site, arguments)


_EXAMPLES = {
    "train": "train -- launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/first",
    "evaluate": "evaluate -- runs/first --split test",
    "pack": "pack --parts 8 -- mvsa-single RAW OUT",
    "seeds": "seeds --seeds 0-4 -- launch/runs/full_finetune.yaml data.shards=OUT run.dir=runs/a",
}


def _check_place() -> None:
    """Paths are as the job sees them, and a job begins in the project's root."""
    from launch.site import ROOT

    if Path.cwd().resolve() != ROOT:
        raise UserError(
            f"submit from the project's root: a job begins there, and paths are seen from there "
            f"(here is {Path.cwd()}); cd {ROOT}"
        )


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"--sbatch {word}: expected KEY=VALUE, as in constraint=h100")
        pairs[key] = value
    return pairs
