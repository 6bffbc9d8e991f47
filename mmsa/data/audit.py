"""Prove from a run's audit that it lost no sample and read none twice.

    python -m mmsa.data.audit RUN [--shards DIR]

The run needs `run.audit=true`. Its files then hold the keys that each rank consumed, as the loader
workers read them from the tars. This command compares them with the index files, step by step (the
step's slice of the order) and epoch by epoch (every sample of the split once), across interruptions
and changes of the world size. Exits with 0 if everything matches, otherwise with 2 and the names of
the samples.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from mmsa.config import Config, load_config
from mmsa.data.audit_files import Part, parts_of, read_part
from mmsa.data.index_file import key_hash
from mmsa.data.manifest import load_manifest
from mmsa.data.order import Order
from mmsa.data.plan import BatchPlan
from mmsa.data.reader import SplitReader
from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.foundation.command_line import CommandParser
from mmsa.foundation.hashed_random import KeyArray
from mmsa.foundation.parsing import parse_json
from mmsa.labels import class_map

_SHOWN = 20  # problems printed
Consumed = list[tuple[int, str]]  # (rank, key) of one step


@dataclass
class Findings:
    """What an audit found. `problems` is empty if everything is proven."""

    num_steps: int = 0
    num_read: int = 0
    ended: bool = False  # whether the run is done, so that every step must be present
    launches: list[tuple[int, int]] = field(default_factory=list)  # (start step, world size)
    problems: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Check one run; returns the exit code."""
    parser = CommandParser(prog="python -m mmsa.data.audit", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--shards", help="where the packed data is now (default: as in the run)")
    arguments = parser.parse_args(argv)
    try:
        if not (arguments.run / "config.yaml").is_file():
            raise UserError(
                f"{arguments.run} is not the directory of a run that started: it has no "
                "config.yaml. Expected: the run.dir of a run with run.audit=true"
            )
        config = load_config(str(arguments.run / "config.yaml"))
        expected = Expected(config, arguments.shards or str(config.data.shards))
        findings = audit(arguments.run, expected)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for start_step, world_size in findings.launches:
        print(f"launch from step {start_step}: {world_size} rank(s)")
    plan = expected.plan
    print(f"{findings.num_read} samples read in {findings.num_steps} steps")
    print(
        f"an epoch: {plan.num_samples} samples in {plan.steps_per_epoch} steps, "
        f"{plan.left_out_per_epoch} left out by data.drop_last"
    )
    if findings.problems:
        for problem in findings.problems[:_SHOWN]:
            print(f"error: {problem}", file=sys.stderr)
        print(f"error: {len(findings.problems)} problem(s) in all", file=sys.stderr)
        return EXIT_USER_ERROR
    if not findings.ended:
        print(
            "the run is not done; checked up to the last step that all its ranks wrote: "
            f"{findings.num_steps}"
        )
    print("nothing lost, nothing doubled: every step read its slice of the order")
    return 0


class Expected:
    """What a run must have read, according to the shards."""

    def __init__(self, config: Config, shards: str) -> None:
        manifest = load_manifest(shards)
        classes = class_map(manifest.classes, config.data.classes)
        self.reader = SplitReader(shards, manifest, "train", classes)
        size = config.train.global_batch_size
        self.plan = BatchPlan(
            len(self.reader), size, size, 1, config.data.drop_last, config.data.groups
        )
        self._config = config
        self._orders: dict[int, Order] = {}

    def order(self, epoch: int) -> Order:
        if epoch not in self._orders:
            self._orders = {
                epoch: Order(
                    self.reader.sizes,
                    identity=self.reader.identity,
                    seed=self._config.run.seed,
                    epoch=epoch,
                    window_shards=self._config.data.window_shards,
                    groups=self.plan.groups,
                    global_batch_size=self.plan.global_batch_size,
                )
            }
        return self._orders[epoch]

    def hashes(self, epoch: int, start: int, stop: int) -> tuple[KeyArray, list[tuple[int, int]]]:
        """Key hashes (n,) and (shard, row) places of a slice of an epoch's order."""
        shards, rows = self.order(epoch).slice(start, stop)
        places = list(zip(shards.tolist(), rows.tolist(), strict=True))
        found = [self.reader.records(shard)["key_hash"][row] for shard, row in places]
        return np.array(found, dtype=np.uint64), places

    def name(self, place: tuple[int, int]) -> str:
        """The key of a sample, or its place if it cannot be read any more."""
        shard, row = place
        try:
            return self.reader.read(shard, row).key
        except UserError:
            return f"sample {row} of {self.reader.shards.tar(shard)}"


def audit(run_dir: Path, expected: Expected) -> Findings:
    """Compare a run's audit files with its shards. Raises `UserError` if it has no audit files."""
    parts = parts_of(run_dir)
    if not parts:
        raise UserError(
            f"{run_dir} has no audit; only a run that was started with run.audit=true writes one"
        )
    findings = Findings(ended=_steps_done(run_dir) is not None)
    done: list[tuple[int, KeyArray]] = []  # steps of the current epoch and what they read
    current_epoch = 0
    for step, consumed in _steps(run_dir, parts, findings):
        findings.num_steps, findings.num_read = step, findings.num_read + len(consumed)
        place = expected.plan.locate(step - 1)
        if place[0] != current_epoch:
            _check_epoch(current_epoch, done, expected, findings)
            current_epoch, done = place[0], []
        hashes = np.array([key_hash(key) for _, key in consumed], dtype=np.uint64)
        _check_step(step, place, consumed, hashes, expected, findings, done)
        done.append((step, hashes))
    _check_epoch(current_epoch, done, expected, findings)
    return findings


def _steps(run_dir: Path, parts: list[Part], findings: Findings) -> Iterator[tuple[int, Consumed]]:
    """(step, what all ranks consumed in it), launch by launch; gaps are recorded as problems."""
    launches = [
        (key, list(ranks))
        for key, ranks in groupby(parts, key=lambda part: (part.start_step, part.world_size))
    ]
    expected_step = 1
    for number, ((start_step, world_size), ranks) in enumerate(launches):
        findings.launches.append((start_step, world_size))
        missing = sorted(set(range(world_size)) - {part.rank for part in ranks})
        if missing:
            findings.problems.append(
                f"the launch from step {start_step} with {world_size} ranks has no audit of "
                f"rank(s) {', '.join(map(str, missing))}"
            )
        last = number + 1 == len(launches)
        stop_step = _steps_done(run_dir) if last else launches[number + 1][0][0]
        if start_step + 1 != expected_step:
            findings.problems.append(
                f"the launch from step {start_step} follows step {expected_step - 1}"
            )
        lines = [(part.rank, read_part(part.path(run_dir))) for part in ranks]
        for step in range(start_step + 1, (stop_step or sys.maxsize) + 1):
            turns = [(rank, next(part, None)) for rank, part in lines]
            silent = [rank for rank, turn in turns if turn is None or turn[0] != step]
            if silent and stop_step is None:
                break  # the run is still going or was killed: no checkpoint has these steps
            if silent:
                findings.problems.append(
                    f"rank(s) {', '.join(map(str, silent))} of {world_size} have no line for step "
                    f"{step}; the steps from there to {stop_step} are not proven"
                )
                break
            yield step, [(rank, key) for rank, turn in turns if turn for key in turn[1]]
        else:
            beyond = [rank for rank, part in lines if next(part, None) is not None]
            if beyond:
                findings.problems.append(
                    f"rank(s) {', '.join(map(str, beyond))} of the launch from step {start_step} "
                    f"continued past step {stop_step}, where it should have ended"
                )
        if stop_step is not None:
            expected_step = stop_step + 1


def _steps_done(run_dir: Path) -> int | None:
    """The number of steps of a finished run; None for any other."""
    try:
        status = parse_json((run_dir / "status.json").read_text())
        return int(status["step"]) if status["state"] == "done" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_step(
    step: int,
    place: tuple[int, int, int],
    consumed: Consumed,
    hashes: KeyArray,
    expected: Expected,
    findings: Findings,
    done: list[tuple[int, KeyArray]],
) -> None:
    """Check that the step's keys are its slice of the order, each once.

    `done` holds the earlier steps of the epoch.
    """
    wanted, places = expected.hashes(*place)
    if np.array_equal(np.sort(hashes), np.sort(wanted)):
        return
    seen: dict[int, int] = {}
    for (rank, key), number in zip(consumed, hashes.tolist(), strict=True):
        if number in seen:
            findings.problems.append(
                f"step {step} read {key} twice: on rank {seen[number]} and on rank {rank}"
            )
        seen[number] = rank
    for number, where in zip(wanted.tolist(), places, strict=True):
        if number not in seen:
            findings.problems.append(f"step {step} lost {expected.name(where)}")
    for (rank, key), number in zip(consumed, hashes, strict=True):
        if number not in wanted:
            before = [past for past, others in done if number in others]
            again = f"; step {before[0]} of this epoch had read it" if before else ""
            findings.problems.append(
                f"step {step} read {key} on rank {rank}, which is not a sample of this step{again}"
            )


def _check_epoch(
    epoch: int, done: list[tuple[int, KeyArray]], expected: Expected, findings: Findings
) -> None:
    """Check that an epoch has no sample twice and, if complete, all but those left out.

    Uses only the index files, neither the plan's order nor its steps.
    """
    hashes = np.concatenate([np.empty(0, np.uint64), *(hashes for _, hashes in done)])
    doubled = len(hashes) - len(np.unique(hashes))
    if doubled:
        findings.problems.append(f"epoch {epoch} read {doubled} sample(s) more than once")
    if len(done) < expected.plan.steps_per_epoch:
        return  # not complete; missing steps have been reported already
    _, records = expected.reader.all_records()
    lost = int((~np.isin(records["key_hash"], hashes)).sum())
    allowed = expected.plan.left_out_per_epoch
    if lost != allowed:
        findings.problems.append(
            f"epoch {epoch} did not read {lost} sample(s) of the split; {allowed} are left out by "
            "data.drop_last"
        )


if __name__ == "__main__":
    sys.exit(main())
