"""The arithmetic of a profile; a whole one is in tests/end_to_end/test_two_processes.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from mmsa.training.profile import StepProfile, communication, in_rows, length, merged, overlaps


def event(
    name: str, start_us: float, end_us: float, device: str = "CPU", *, annotation: bool = False
) -> SimpleNamespace:
    time_range = SimpleNamespace(start=start_us, end=end_us)
    device_type = f"DeviceType.{device}"
    return SimpleNamespace(
        name=name, time_range=time_range, device_type=device_type, is_user_annotation=annotation
    )


def test_a_collective_counts_once_and_alone_where_nothing_else_is_at_work() -> None:
    events = [
        event("gloo:all_reduce", 1000, 3000),
        event("gloo:all_reduce", 2000, 5000),
        event("aten::mm", 0, 1500),
        event("aten::add", 4000, 9000),
        event("backward", 0, 9000),
    ]
    assert communication(events, on_gpu=False) == (4.0, 2.5)  # ms: 1 to 5; 1.5 to 4


def test_on_a_gpu_only_its_kernels_and_copies_hide_a_collective() -> None:
    """The host's operations overlap with everything, because it runs ahead of the GPU."""
    of_the_gpu = [
        event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 1000, 5000, "CUDA"),
        event("sm90_xmma_gemm_bf16", 0, 1500, "CUDA"),
        event("Memcpy HtoD (Pinned -> Device)", 4500, 4800, "CUDA"),
    ]
    around = [
        event("aten::mm", 0, 9000),  # of the host
        event("nccl:all_reduce", 0, 9000),  # of the host: the launch alone
        event("cudaLaunchKernel", 0, 9000),
        event("backward", 0, 9000, "CUDA", annotation=True),
        event("nccl:all_reduce", 0, 9000, "CUDA", annotation=True),
    ]
    expected = (4.0, 3.2)  # ms: 1 to 5; 1.5 to 4.5 and 4.8 to 5
    assert communication(of_the_gpu, on_gpu=True) == expected
    assert communication([*around, *of_the_gpu], on_gpu=True) == expected


def test_events_of_the_installed_profiler_have_what_is_asked_of_them() -> None:
    with torch.profiler.profile() as profiler, torch.profiler.record_function("backward"):
        torch.ones(8).sum()
    events = profiler.events()
    assert {str(one.device_type) for one in events} == {"DeviceType.CPU"}
    assert [one.name for one in events if one.is_user_annotation] == ["backward"]
    assert communication(events, on_gpu=True) == (0, 0)


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
