"""The arithmetic of a profile; a whole one is in tests/end_to_end/test_two_processes.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from mmsa.training.profile import StepProfile, communication, in_rows, length, merged, overlaps


def event(name: str, start_us: float, end_us: float) -> SimpleNamespace:
    time_range = SimpleNamespace(start=start_us, end=end_us)
    return SimpleNamespace(name=name, time_range=time_range, device_type="DeviceType.CPU")


def test_a_collective_counts_once_and_alone_where_nothing_else_is_at_work() -> None:
    events = [
        event("gloo:all_reduce", 1000, 3000),
        event("gloo:all_reduce", 2000, 5000),
        event("aten::mm", 0, 1500),
        event("aten::add", 4000, 9000),
        event("backward", 0, 9000),
    ]
    assert communication(events) == (4.0, 2.5)  # ms: 1 to 5; 1.5 to 4


def test_intervals() -> None:
    assert merged([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert overlaps([(0, 4), (5, 9)], [(1, 2), (3, 6), (8, 20)]) == [(1, 2), (3, 4), (5, 6), (8, 9)]
    assert length([(0, 4), (5, 6)]) == 5


def test_a_run_that_ends_early_tells_what_it_has(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path, torch.device("cpu"), enabled=True)
    profile.begin_loop()
    for _ in range(4):  # three warm up
        with profile.part("forward"):
            torch.ones(8).sum()
        profile.end_step()
    profile.close()
    content = json.loads((tmp_path / "profile" / "profile.json").read_text())
    assert (content["steps"], content["timed_steps"], content["communication"]) == (4, 1, {})
    assert content["parts"]["forward"]["ms"] > 0 == content["parts"]["backward"]["ms"]
    assert (tmp_path / "profile" / "profile.txt").read_text().splitlines() == in_rows(content)


def test_without_the_setting_nothing_is_written(tmp_path: Path) -> None:
    profile = StepProfile(tmp_path, torch.device("cpu"), enabled=False)
    profile.begin_loop()
    for _ in range(11):
        with profile.part("forward"):
            pass
        profile.end_step()
    profile.close()
    assert list(tmp_path.iterdir()) == []
