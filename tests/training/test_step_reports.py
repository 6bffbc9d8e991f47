"""Reports come one step later, and all at once where somebody waits for them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from mmsa.training.step_reports import StepReports, StepResult, add_measures


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
    assert first.measures == {}
    post(reports, 3)
    second, third = reports.collect(everything=True)
    assert (second.nonfinite, third.step, third.nonfinite) == (True, 3, False)
    assert reports.collect(everything=True) == []


def test_measures_are_summed_as_the_loss_is(accelerator: Accelerator) -> None:
    """Two micro-batches of 2 real samples and of 1, whose other row pads the batch."""
    reports = StepReports(accelerator, ("SIGTERM",), ("image_gate",))
    sums: dict[str, torch.Tensor] = {}
    add_measures(sums, {"image_gate": torch.tensor([0.3, 0.6])}, torch.tensor([1.0, 1.0]) / 3)
    add_measures(sums, {"image_gate": torch.tensor([0.9, 0.1])}, torch.tensor([1.0, 0.0]) / 3)
    result = StepResult(torch.tensor(0.5), 2.0, torch.tensor(False), ["a", "b", "c"], sums)
    reports.post(1, result, {}, stop=["SIGTERM"])
    (report,) = reports.collect(everything=True)
    assert report.measures == pytest.approx({"image_gate": 0.6})
    assert (report.loss, report.stop) == (0.5, ["SIGTERM"])


def test_a_stop_brings_the_newest_report_too(reports: StepReports) -> None:
    post(reports, 1, ["run.max_time", "SIGTERM"])
    assert reports.collect(everything=False) == []
    post(reports, 2)
    collected = reports.collect(everything=False)
    assert [report.step for report in collected] == [1, 2]
    assert [report.stop for report in collected] == [["SIGTERM", "run.max_time"], []]
