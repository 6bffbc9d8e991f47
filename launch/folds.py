"""`python -m launch folds`: the commands of a k-fold experiment, printed.

    folds mvsa-single RAW runs/five --protocol kfold:5 \\
        --config launch/runs/small_encoders.yaml
    folds mvsa-single RAW runs/tib10 --protocol tib10 --config FILE \\
        -- train.epochs=3  | bash -e
    folds mvsa-single RAW runs/five --protocol kfold:5 --config FILE --seeds 3

The commands pack and train every fold, then evaluate all of them. With --seeds N each fold is
trained with the seeds 0 to N - 1, and its runs are evaluated as an ensemble. Nothing is run here:
read the lines, pipe them to a shell, or submit each `train.py` line. Settings after -- are passed
to every `train.py`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from mmsa.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="raw data format, as for `python -m shards pack`")
    parser.add_argument("raw", help="the raw data")
    parser.add_argument(
        "directory", type=Path, help="output directory for the shards and runs of all folds"
    )
    parser.add_argument("--protocol", required=True, help="kfold:N or tib10")
    parser.add_argument("--config", required=True, help="run configuration of every fold")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes per launch (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train each fold N times; the runs of a fold are one ensemble (default: %(default)s)",
    )
    parser.add_argument(
        "--pack-options",
        default="",
        metavar="OPTIONS",
        help="options for every `pack` command, quoted as one argument",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    try:
        pack_options = shlex.split(arguments.pack_options)
    except ValueError as error:
        raise UserError(f"--pack-options {arguments.pack_options}: {error}") from None
    lines = launch_lines(
        arguments.source,
        arguments.raw,
        arguments.directory,
        arguments.protocol,
        config=arguments.config,
        num_processes=arguments.processes,
        num_seeds=arguments.seeds,
        pack_options=pack_options,
        settings=arguments.rest,
    )
    print("\n".join(lines))


def protocols_of(protocol: str) -> list[str]:
    """The protocol of each fold: `kfold:3` -> kfold:1/3, ...; `tib10` -> tib10:1, ....

    Raises `UserError` for a protocol without folds.
    """
    from shards.splits.protocols import parse_protocol
    from shards.splits.published import NUM_FOLDS

    if protocol == "tib10":
        return [f"tib10:{number}" for number in range(1, NUM_FOLDS + 1)]
    name, _, count = protocol.partition(":")
    if name != "kfold" or not count.isdecimal() or len(count) > 3:
        raise UserError(
            f"--protocol {protocol} has no folds; use kfold:N (such as kfold:5) or tib10"
        )
    names = [f"kfold:{number}/{int(count)}" for number in range(1, int(count) + 1)]
    for fold_name in names or [protocol]:
        parse_protocol(fold_name)  # rejects too few folds
    return names


def launch_lines(
    source: str,
    raw: str,
    directory: Path,
    protocol: str,
    *,
    config: str,
    num_processes: int = 1,
    num_seeds: int = 1,
    pack_options: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> list[str]:
    """One shell line per command: all packing, all training, then the evaluation of all folds.

    Each fold gets `directory/fold-K/shards` and the run `directory/fold-K/run`, or one run for each
    of several seeds, `run-0` and up. Raises `UserError` for a protocol without folds.
    """
    if num_seeds < 1:
        raise UserError(f"--seeds {num_seeds}: expected the number of runs of each fold, such as 3")
    launch = ["accelerate", "launch", "--config_file", "accelerate_config.yaml"]
    launch += ["--num_processes", str(num_processes)]
    packs, trains, runs = [], [], []
    for number, name in enumerate(protocols_of(protocol), start=1):
        fold = directory / f"fold-{number}"
        shards = str(fold / "shards")
        packs.append(
            ["python", "-m", "shards", "pack", source, raw, shards, "--protocol", name]
            + list(pack_options)
        )
        for seed in range(num_seeds):
            run = str(fold / ("run" if num_seeds == 1 else f"run-{seed}"))
            own = [] if num_seeds == 1 else [f"run.seed={seed}"]
            trains.append(
                [*launch, "train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}"]
                + [*settings, *own]
            )
            runs.append(run)
    evaluation = [*launch, "evaluate.py", *runs, "--folds"]
    if num_seeds > 1:
        evaluation.append("--ensemble")
    return [shlex.join(command) for command in [*packs, *trains, evaluation]]
