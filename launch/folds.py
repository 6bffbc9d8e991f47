"""`python -m launch folds`: the commands of a k-fold experiment, printed.

    folds mvsa-single RAW runs/five --protocol kfold:5 --config launch/runs/small_encoders.yaml
    folds mvsa-single RAW runs/tib10 --protocol tib10 --config FILE -- train.epochs=3  | bash -e

Pack and train every fold, then one evaluation of all. Nothing is run here: read the lines, give
them to a shell, or each `train.py` line to a scheduler. Settings behind -- go to every `train.py`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsa.errors import UserError


def add_parser(commands: Any) -> None:
    folds = commands.add_parser(
        "folds",
        help="print the commands of a k-fold experiment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folds.add_argument("source", help="raw format, as in `python -m shards pack`")
    folds.add_argument("raw", help="the raw data")
    folds.add_argument("directory", type=Path, help="where shards and runs of the folds go")
    folds.add_argument("--protocol", required=True, help="kfold:N or tib10")
    folds.add_argument("--config", required=True, help="run configuration of every fold")
    folds.add_argument("--processes", type=int, default=1, help="per launch (default: 1)")
    folds.add_argument(
        "--pack-options", default="", metavar="OPTIONS", help="of every `pack`, in one word"
    )
    folds.set_defaults(run=_run)


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

    Raises `UserError` for what has no folds.
    """
    from shards.splits.protocols import parse_protocol
    from shards.splits.published import NUM_FOLDS

    if protocol == "tib10":
        return [f"tib10:{number}" for number in range(1, NUM_FOLDS + 1)]
    name, _, count = protocol.partition(":")
    if name != "kfold" or not count.isdecimal() or len(count) > 3:
        raise UserError(
            f"--protocol {protocol} names no folds; write kfold:N (as kfold:5) or tib10"
        )
    names = [f"kfold:{number}/{int(count)}" for number in range(1, int(count) + 1)]
    for one in names or [protocol]:
        parse_protocol(one)  # refuses too few folds
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
