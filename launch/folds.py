"""`python -m launch folds`: the commands of a k-fold experiment, printed.

    folds mvsa-single RAW runs/five --protocol kfold:5 --config launch/runs/small_encoders.yaml
    folds mvsa-single RAW runs/tib10 --protocol tib10 --config FILE -- train.epochs=3  | bash -e

The commands pack and train every fold, then evaluate all of them. Nothing is run here: read the
lines, pipe them to a shell, or submit each `train.py` line. Settings after -- are passed to every
`train.py`.
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
    pack_options: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> list[str]:
    """One shell line per command: all packing, all training, then the evaluation of all folds.

    Each fold gets `directory/fold-K/shards` and the run `directory/fold-K/run`. Raises `UserError`
    for a protocol without folds.
    """
    launch = ["accelerate", "launch", "--config_file", "accelerate_config.yaml"]
    launch += ["--num_processes", str(num_processes)]
    packs, trains, runs = [], [], []
    for number, name in enumerate(protocols_of(protocol), start=1):
        fold = directory / f"fold-{number}"
        shards, run = str(fold / "shards"), str(fold / "run")
        packs.append(
            ["python", "-m", "shards", "pack", source, raw, shards, "--protocol", name]
            + list(pack_options)
        )
        trains.append(
            [*launch, "train.py", "--config", config, f"data.shards={shards}", f"run.dir={run}"]
            + list(settings)
        )
        runs.append(run)
    evaluation = [*launch, "evaluate.py", *runs, "--folds"]
    return [shlex.join(command) for command in [*packs, *trains, evaluation]]
