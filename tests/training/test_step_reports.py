"""Reports come one step later, and all at once where somebody waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from mmsa.training.step_reports import StepReports, StepResult


@pytest.fixture
def reports(accelerator: Accelerator) -> StepReports:
    return StepReports(accelerator, ("SIGTERM", "SIGUSR1", "run.max_time"))


def post(
    reports: StepReports, step: int, stop: Sequence[str] = (), *, nonfinite: bool = False
) -> None:
    result = StepResult(
        torch.tensor(0.5 * step), 2.0 * step, torch.tensor(nonfinite), keys=[f"key-{step}"]
    )
    reports.post(step, result, {"head": 0.1}, stop=stop)


def test_a_report_is_read_a_step_later(reports: StepReports) -> None:
    post(reports, 1)
    assert reports.collect(everything=False) == []
    post(reports, 2, nonfinite=True)
    (first,) = reports.collect(everything=False)
    assert (first.step, first.loss, first.grad_norm, first.nonfinite) == (1, 0.5, 2.0, False)
    assert (first.keys, first.rates, first.stop) == (["key-1"], {"head": 0.1}, [])
    post(reports, 3)
    second, third = reports.collect(everything=True)
    assert (second.nonfinite, third.step, third.nonfinite) == (True, 3, False)
    assert reports.collect(everything=True) == []


def test_a_stop_brings_the_newest_report_too(reports: StepReports) -> None:
    post(reports, 1, ["run.max_time", "SIGTERM"])
    assert reports.collect(everything=False) == []
    post(reports, 2)
    collected = reports.collect(everything=False)
    assert [report.step for report in collected] == [1, 2]
    assert [report.stop for report in collected] == [["SIGTERM", "run.max_time"], []]
