"""Reports come one step later, and all at once where somebody waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from mmsa.training.step_reports import StepReport, StepReports


@pytest.fixture
def exchange(accelerator: Accelerator) -> StepReports:
    return StepReports(accelerator, ("SIGTERM", "SIGUSR1", "run.max_time"))


def post(
    exchange: StepReports, step: int, stop: Sequence[str] = (), *, nonfinite: bool = False
) -> None:
    exchange.post(
        StepReport(step, keys=[f"key-{step}"], rates={"head": 0.1}),
        loss=torch.tensor(0.5 * step),
        grad_norm=2.0 * step,
        nonfinite=torch.tensor(nonfinite),
        stop=stop,
    )


def test_a_report_is_read_a_step_later(exchange: StepReports) -> None:
    post(exchange, 1)
    assert exchange.collect(everything=False) == []
    post(exchange, 2, nonfinite=True)
    (first,) = exchange.collect(everything=False)
    assert (first.step, first.loss, first.grad_norm, first.nonfinite) == (1, 0.5, 2.0, False)
    assert (first.keys, first.rates, first.stop) == (["key-1"], {"head": 0.1}, [])
    post(exchange, 3)
    second, third = exchange.collect(everything=True)
    assert (second.nonfinite, third.step, third.nonfinite) == (True, 3, False)
    assert exchange.collect(everything=True) == []


def test_a_stop_brings_the_newest_report_too(exchange: StepReports) -> None:
    post(exchange, 1, ["run.max_time", "SIGTERM"])
    assert exchange.collect(everything=False) == []
    post(exchange, 2)
    reports = exchange.collect(everything=False)
    assert [report.step for report in reports] == [1, 2]
    assert [report.stop for report in reports] == [["SIGTERM", "run.max_time"], []]
