"""What the ranks tell each other after each step, without waiting for the answer.

The loss and gradient norm of a step, whether they are finite, each reason to stop that a rank has
received, and the measures of the fusion head travel in one small tensor. It is summed over the
ranks while the next step computes and read at that step's end, so no step waits for the host or for
the slowest rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

_LOSS, _GRAD_NORM, _NONFINITE, _FIRST_REASON = range(4)


@dataclass(frozen=True)
class StepResult:
    """What one step came to on this rank; the tensors are scalars on the device."""

    loss: Tensor  # this rank's part of the mean loss: the parts of all ranks add up to it
    grad_norm: Tensor | float  # of the whole gradient, before clipping
    nonfinite: Tensor  # bool: whether the gradient or this rank's loss is not finite
    keys: list[str]  # of this rank's samples
    measures: dict[str, Tensor] = field(default_factory=dict)  # parts of means, as `loss` is


@dataclass
class StepReport:
    """One step as all ranks see it, once their sum has been read."""

    step: int
    rates: dict[str, float]  # learning rates by part of the model
    keys: list[str]  # of this rank's samples
    ended: float = field(default_factory=time.perf_counter)
    loss: float = 0.0  # mean over the global batch
    grad_norm: float = 0.0  # of the whole gradient, before clipping
    nonfinite: bool = False  # on any rank; the weights were not changed
    stop: list[str] = field(default_factory=list)  # reasons to stop, of any rank
    measures: dict[str, float] = field(default_factory=dict)  # means over the global batch


def add_measures(sums: dict[str, Tensor], told: Mapping[str, Tensor], shares: Tensor) -> None:
    """Add what the samples of a micro-batch told, (B,) each, to the sums of a step, by name.

    `shares` (B,) are the samples' shares in the global batch's mean: 0 for rows that pad a batch.
    """
    for name, values in told.items():
        sums[name] = sums.get(name, torch.zeros_like(shares[0])) + (values * shares).sum()


class StepReports:
    """Reports in flight. All ranks post and collect at the same steps."""

    def __init__(
        self, accelerator: Accelerator, reasons: Sequence[str], measures: Sequence[str] = ()
    ) -> None:
        """`reasons`: every possible reason to stop; `measures`: the names of those of each step.

        Both lists are the same on all ranks.
        """
        self._accelerator = accelerator
        self._reasons, self._measures = tuple(reasons), tuple(measures)
        self._pending: deque[tuple[StepReport, Callable[[], list[float]]]] = deque()
        on_gpu = accelerator.device.type == "cuda"
        self._stream = torch.cuda.Stream() if on_gpu else None

    def post(
        self, step: int, result: StepResult, rates: dict[str, float], *, stop: Sequence[str]
    ) -> None:
        """Send this rank's part of a step's report: its result, and its reasons to stop.

        Nothing here waits for the device.
        """
        report = StepReport(step, rates, result.keys)
        first_measure = _FIRST_REASON + len(self._reasons)
        told = torch.zeros(first_measure + len(self._measures), device=result.loss.device)
        told[_LOSS] = result.loss
        if self._accelerator.is_main_process:
            told[_GRAD_NORM] = result.grad_norm  # the same on all ranks
        told[_NONFINITE] = result.nonfinite
        for reason in stop:
            told[_FIRST_REASON + self._reasons.index(reason)].fill_(1.0)
        for at, name in enumerate(self._measures, first_measure):
            told[at] = result.measures[name]
        self._pending.append((report, self._sum(told)))

    def collect(self, everything: bool) -> list[StepReport]:
        """The reports of all steps but the newest.

        The newest too with `everything`, or where an earlier report says stop: no step will follow.
        """
        collected: list[StepReport] = []
        while len(self._pending) > 1:
            collected.append(self._read())
        if self._pending and (everything or any(report.stop for report in collected)):
            collected.append(self._read())
        return collected

    def _read(self) -> StepReport:
        report, values_of = self._pending.popleft()
        values = values_of()
        report.loss, report.grad_norm = values[_LOSS], values[_GRAD_NORM]
        report.nonfinite = values[_NONFINITE] > 0
        first_measure = _FIRST_REASON + len(self._reasons)
        counts = zip(self._reasons, values[_FIRST_REASON:first_measure], strict=True)
        report.stop = [reason for reason, count in counts if count > 0]
        report.measures = dict(zip(self._measures, values[first_measure:], strict=True))
        return report

    def _sum(self, told: Tensor) -> Callable[[], list[float]]:
        """Start the sum over the ranks; calling the result waits for it."""
        if self._stream is not None:
            return self._sum_on_gpu(told, self._stream)
        work = None
        if self._accelerator.num_processes > 1:
            work = torch.distributed.all_reduce(told, async_op=True)

        def values() -> list[float]:
            if work is not None:
                work.wait()
            return told.tolist()

        return values

    def _sum_on_gpu(self, told: Tensor, stream: torch.cuda.Stream) -> Callable[[], list[float]]:
        """The same on a GPU: on its own stream, into memory that the host can read."""
        on_host = torch.empty(told.shape, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if self._accelerator.num_processes > 1:
                # Blocks this stream, not the host.
                torch.distributed.all_reduce(told, async_op=True).wait()
            on_host.copy_(told, non_blocking=True)
        told.record_stream(stream)
        # Waits asleep. By default a host waits by asking again and again, which takes a core.
        done = torch.cuda.Event(blocking=True)
        done.record(stream)

        def values() -> list[float]:
            done.synchronize()
            return on_host.tolist()

        return values
