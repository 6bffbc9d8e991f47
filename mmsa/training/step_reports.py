"""What the ranks tell each other after each step, without waiting for it.

A step's loss and gradient norm, whether they are finite, and each reason to stop that a rank has
heard are one small tensor. It is summed over the ranks beside the computation and read at the end
of the next step, so that no step waits for the host or for the slowest rank.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

_LOSS, _GRAD_NORM, _NONFINITE, _FIRST_REASON = range(4)


@dataclass
class StepReport:
    """One step: what this rank remembers of it, and, once read, what all ranks say of it."""

    step: int
    keys: list[str]  # this rank's samples
    rates: dict[str, float]
    ended: float = field(default_factory=time.perf_counter)
    loss: float = 0.0  # mean over the global batch
    grad_norm: float = 0.0  # of the whole gradient, before clipping
    nonfinite: bool = False  # loss or gradient on any rank; the weights were left as they were
    stop: list[str] = field(default_factory=list)  # reasons, of any rank


class StepReports:
    """Reports on their way. All ranks post and collect at the same steps."""

    def __init__(self, accelerator: Accelerator, reasons: Sequence[str]) -> None:
        """`reasons`: every reason to stop that there can be, alike on all ranks."""
        self._accelerator = accelerator
        self._reasons = tuple(reasons)
        self._pending: deque[tuple[StepReport, Callable[[], list[float]]]] = deque()
        on_gpu = accelerator.device.type == "cuda"
        self._stream = torch.cuda.Stream() if on_gpu else None

    def post(
        self,
        report: StepReport,
        *,
        loss: Tensor,
        grad_norm: Tensor | float,
        nonfinite: Tensor,
        stop: Sequence[str],
    ) -> None:
        """Send a step's report. `loss` is this rank's part of the mean, the others are local too.

        The tensors are scalars on the device; nothing here waits for them.
        """
        told = torch.zeros(_FIRST_REASON + len(self._reasons), device=loss.device)
        told[_LOSS] = loss
        if self._accelerator.is_main_process:
            told[_GRAD_NORM] = grad_norm  # alike on all ranks
        told[_NONFINITE] = nonfinite
        for reason in stop:
            told[_FIRST_REASON + self._reasons.index(reason)].fill_(1.0)
        self._pending.append((report, self._sum(told)))

    def collect(self, everything: bool) -> list[StepReport]:
        """The reports of the steps before the newest one; of that one too with `everything`, or
        where an earlier one says stop, because no further step will follow."""
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
        counts = zip(self._reasons, values[_FIRST_REASON:], strict=True)
        report.stop = [reason for reason, count in counts if count > 0]
        return report

    def _sum(self, told: Tensor) -> Callable[[], list[float]]:
        """Begin to sum over the ranks; the result, called, waits for it."""
        if self._stream is not None:
            return self._sum_beside(told, self._stream)
        work = None
        if self._accelerator.num_processes > 1:
            work = torch.distributed.all_reduce(told, async_op=True)

        def values() -> list[float]:
            if work is not None:
                work.wait()
            return told.tolist()

        return values

    def _sum_beside(self, told: Tensor, stream: torch.cuda.Stream) -> Callable[[], list[float]]:
        """The same on a GPU: on a stream of its own, into memory that the host can read."""
        on_host = torch.empty(told.shape, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if self._accelerator.num_processes > 1:
                torch.distributed.all_reduce(told, async_op=True).wait()  # this stream, no host
            on_host.copy_(told, non_blocking=True)
        told.record_stream(stream)
        done = torch.cuda.Event()
        done.record(stream)

        def values() -> list[float]:
            done.synchronize()
            return on_host.tolist()

        return values
