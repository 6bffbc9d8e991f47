"""The stages, the most important first: with too little time the last ones are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu import correctness, evaluations, several, speed
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.outcome import Outcome


@dataclass(frozen=True)
class Stage:
    """`estimate_s`: what it takes on one GPU, by reckoning until one has measured it."""

    name: str
    work: Callable[[Bench, Outcome], None]
    estimate_s: float

    @property
    def question(self) -> str:
        return (self.work.__doc__ or "").split("\n")[0]


STAGES = (
    Stage("streams", correctness.streams, 40),
    Stage("syncs", correctness.syncs, 75),
    Stage("losses", correctness.step_losses, 170),
    Stage("changes", speed.changes, 200),
    Stage("batches", speed.batches, 80),
    Stage("memory", correctness.memory, 40),
    Stage("processes", correctness.processes, 30),
    Stage("resume", correctness.resume, 150),
    Stage("order", several.order, 90),
    Stage("timeout", several.timeout, 70),
    Stage("endings", correctness.endings, 150),
    Stage("trace", speed.trace, 30),
    Stage("checkpoint", speed.checkpoint, 50),
    Stage("workers", speed.workers, 80),
    Stage("precisions", evaluations.precisions, 100),
    Stage("scaling", several.scaling, 120),
    Stage("bandwidth", several.bandwidth, 30),
    Stage("engines", speed.engines, 120),
    Stage("peers", speed.peers, 90),
)
SEVERAL = ("order", "timeout", "scaling", "bandwidth")  # need two GPUs
