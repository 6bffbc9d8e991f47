"""From the rates of one rank to the run: what limits it, and how long it takes.

The model is simple, and says so: ranks are alike, a step computes and then communicates, and
validation and checkpoints are left out. So a run may be slower; `error` says by how much it was.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from launch.doctor.findings.finding import WARNING, Finding

_DATA_BOUND = 0.9  # of the speed of steps on a batch that is there
_NOTABLE_SHARE = 0.3  # of a step, for communication
_NOTABLE_ERROR = 0.25


@dataclass(frozen=True)
class Forecast:
    """Rates in samples/s of all ranks, times in seconds."""

    ranks: int
    step_per_s: float  # if batches were always there, without communication
    loader_per_s: float
    workers: int  # of a rank
    workers_needed: int | None  # None: the loader is fast enough
    communication_s: float  # of a step, at most
    communication_share: float
    expected_per_s: float
    num_steps: int
    expected_s: float  # of the whole run
    largest_micro_batch: int | None  # None: not tried, without a GPU
    real_per_s: float | None  # of a run in the run directory
    error: float | None  # (expected - real) / real

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def forecast(facts: dict[str, Any], sizes: dict[str, Any] | None) -> Forecast:
    """The forecast of a run from the step `forecast`; `sizes` is the all-reduce between all ranks.

    A ring all-reduce of the gradients takes their bytes divided by the measured rate
    (docs/doctor.md#forecast). DDP hides part of it behind the backward pass: this is the most.
    """
    ranks, batch = facts["ranks"], facts["global_batch"]
    communication_s = 0.0
    if ranks > 1 and sizes:
        largest = max(sizes, key=int)
        communication_s = facts["gradient_bytes"] / int(largest) * sizes[largest]["seconds"]
    step, together = ranks * facts["step_per_s"], ranks * facts["together_per_s"]
    loader = ranks * facts["loader_per_s"]
    step_s = batch / together + communication_s
    needed = None
    if loader < step * _DATA_BOUND:
        per_worker = facts["loader_per_s"] / max(1, facts["workers"])
        needed = math.ceil(facts["step_per_s"] / per_worker)
    real = facts.get("real", {})
    known = real.get("samples_per_s") if real.get("ranks") == ranks else None
    expected = batch / step_s
    return Forecast(
        ranks=ranks,
        step_per_s=step,
        loader_per_s=loader,
        workers=facts["workers"],
        workers_needed=needed,
        communication_s=communication_s,
        communication_share=communication_s / step_s,
        expected_per_s=expected,
        num_steps=facts["num_steps"],
        expected_s=facts["num_steps"] * step_s,
        largest_micro_batch=facts.get("largest_micro_batch"),
        real_per_s=known,
        error=None if not known else (expected - known) / known,
    )


def in_words(one: Forecast) -> list[str]:
    """The forecast as lines for a person."""
    lines = [
        f"{one.expected_per_s:.4g} samples/s with {one.ranks} rank(s): {one.num_steps} steps take "
        f"{duration(one.expected_s)}, without validation and checkpoints",
        f"steps alone {one.step_per_s:.4g} samples/s; the loader alone {one.loader_per_s:.4g} with "
        f"{one.workers} worker(s) a rank",
    ]
    if one.workers_needed is not None:
        lines.append(f"data-bound: needs {one.workers_needed} workers a rank, has {one.workers}")
    if one.ranks > 1:
        lines.append(f"communication takes at most {100 * one.communication_share:.0f} % of a step")
    if one.largest_micro_batch is not None:
        lines.append(f"largest micro-batch that fits: {one.largest_micro_batch or 'none'}")
    if one.error is not None:
        lines.append(
            f"the run in the run directory makes {one.real_per_s:.4g} samples/s: the forecast is "
            f"{100 * abs(one.error):.0f} % {'above' if one.error > 0 else 'below'} it"
        )
    return lines


def duration(seconds: float) -> str:
    """3:25:10, hours and more without a limit."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def findings(one: Forecast, node: str) -> list[Finding]:
    """What of the forecast is worth a change of the configuration."""
    found = []
    if one.workers_needed is not None:
        found.append(
            _warning(
                node,
                "the run would be data-bound",
                f"{one.workers} worker(s) a rank load {one.loader_per_s / one.ranks:.4g} "
                f"samples/s; a rank computes {one.step_per_s / one.ranks:.4g}",
                f"{one.workers_needed} workers a rank",
                f"request {one.workers_needed} cores more than ranks need, and set data.num_workers"
                f"={one.workers_needed}, or auto",
            )
        )
    if one.communication_share > _NOTABLE_SHARE:
        found.append(
            _warning(
                node,
                "communication takes much of a step",
                f"up to {100 * one.communication_share:.0f} %",
                f"less than {100 * _NOTABLE_SHARE:.0f} %",
                "a larger train.global_batch_size, train.communication=bf16, or fewer nodes",
            )
        )
    if one.error is not None and abs(one.error) > _NOTABLE_ERROR:
        found.append(
            _warning(
                node,
                "the forecast is far from the run that is in the run directory",
                f"{one.expected_per_s:.4g} samples/s forecast, {one.real_per_s:.4g} logged",
                f"within {100 * _NOTABLE_ERROR:.0f} %",
                "find out what differs: other jobs on the nodes, another batch or configuration",
            )
        )
    return found


def _warning(node: str, what: str, found: str, expected: str, do: str) -> Finding:
    return Finding(WARNING, "forecast", (node,), what, found, expected, do)
