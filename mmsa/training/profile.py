"""Where the time of a step goes: `run.profile=true`.

The first steps warm up. The next ones are timed part by part; each part waits for the device, which
costs whatever parts would have overlapped. The next are traced by torch's profiler, without such
waits; its events show how long collectives overlapped with other work.

    RUN/profile/profile.txt, profile.json   the table
    RUN/profile/trace.json.gz               for https://ui.perfetto.dev or chrome://tracing

Main rank only; the other ranks work as usual.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("mmsa")

FOLDER_NAME, TABLE_NAME, JSON_NAME, TRACE_NAME = (
    "profile",
    "profile.txt",
    "profile.json",
    "trace.json.gz",
)
WARM_UP_STEPS, TIMED_STEPS, TRACED_STEPS = 3, 5, 2
OF_A_STEP = ("data", "forward", "backward", "optimizer")
BESIDE = ("validation", "checkpoint")
_ON_HOST = ("gloo:", "nccl:")  # collectives by the names of their events, in lower case
_ON_DEVICE = ("nccldevkernel", "ncclkernel")

Interval = tuple[float, float]


class StepProfile:
    """The stages of a profile, advanced by `end_step`; does nothing unless `enabled`."""

    def __init__(self, run_dir: Path, device: torch.device, *, enabled: bool) -> None:
        self._folder = run_dir / FOLDER_NAME
        self._device = device
        self._enabled = enabled
        self._steps = 0  # of this launch
        self._spent = dict.fromkeys((*OF_A_STEP, *BESIDE), 0.0)
        self._times = dict.fromkeys(BESIDE, 0)
        self._timed_s, self._beside_s = 0.0, 0.0
        self._step_began = 0.0
        self._profiler: Any = None
        self._traced: dict[str, float] = {}

    def part(self, name: str) -> AbstractContextManager[Any]:
        """Around a part of a step, or around a validation or a checkpoint."""
        if not self._enabled:
            return nullcontext()
        if name in BESIDE or self._timing:
            return self._clocked(name)
        return torch.profiler.record_function(name) if self._profiler else nullcontext()

    def begin_loop(self) -> None:
        """Before the first step."""
        self._step_began = time.perf_counter()

    def end_step(self) -> None:
        """A step is done, with its validation and checkpoint if any."""
        if not self._enabled:
            return
        if self._timing:
            self._wait()
            self._timed_s += time.perf_counter() - self._step_began - self._beside_s
        self._steps += 1
        if self._steps == WARM_UP_STEPS + TIMED_STEPS:
            self._start_trace()
        if self._steps == WARM_UP_STEPS + TIMED_STEPS + TRACED_STEPS:
            self._end_trace()
            self.write()
        self._step_began, self._beside_s = time.perf_counter(), 0.0

    def close(self) -> None:
        """The loop has ended, perhaps before all stages were done."""
        if not self._enabled:
            return
        if self._profiler is not None:
            self._end_trace()
        self.write()
        if self._steps <= WARM_UP_STEPS:
            logger.warning(
                "run.profile: the first %d steps are warm-up, and no step followed them",
                WARM_UP_STEPS,
            )

    def write(self) -> None:
        """Write the table as far as it is known."""
        content = self.measured()
        try:
            self._folder.mkdir(exist_ok=True)
            (self._folder / JSON_NAME).write_text(json.dumps(content, indent=1) + "\n")
            (self._folder / TABLE_NAME).write_text("\n".join(in_rows(content)) + "\n")
        except OSError as error:
            logger.warning("the profile cannot be written to %s: %s", self._folder, error)

    def measured(self) -> dict[str, Any]:
        """The content of `profile.json`; docs/run-directory.md says what is in it."""
        steps = max(0, min(self._steps - WARM_UP_STEPS, TIMED_STEPS))
        step_ms = 1e3 * self._timed_s / max(1, steps)
        parts = {name: 1e3 * self._spent[name] / max(1, steps) for name in OF_A_STEP}
        parts["other"] = step_ms - sum(parts.values())
        return {
            "timed_steps": steps,
            "ms_per_step": round(step_ms, 3),
            "parts": {
                name: {"ms": round(ms, 3), "share": round(ms / step_ms, 4) if steps else 0.0}
                for name, ms in parts.items()
            },
            "communication": self._traced,
            "beside": {
                name: {
                    "times": self._times[name],
                    "ms_each": round(1e3 * self._spent[name] / max(1, self._times[name]), 3),
                    "ms_per_step": round(1e3 * self._spent[name] / max(1, self._steps), 3),
                }
                for name in BESIDE
            },
            "steps": self._steps,
        }

    @property
    def _timing(self) -> bool:
        return WARM_UP_STEPS <= self._steps < WARM_UP_STEPS + TIMED_STEPS

    @contextmanager
    def _clocked(self, name: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        spent_s = time.perf_counter() - began
        self._spent[name] += spent_s
        if name in BESIDE:
            self._times[name] += 1
            self._beside_s += spent_s

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _start_trace(self) -> None:
        self._profiler = torch.profiler.profile()  # everything that this build of torch can trace
        self._profiler.start()
        self._trace_began = time.perf_counter()

    def _end_trace(self) -> None:
        self._wait()
        steps = max(1, self._steps - WARM_UP_STEPS - TIMED_STEPS)
        traced_ms = 1e3 * (time.perf_counter() - self._trace_began) / steps
        self._profiler.stop()
        under_way, waited = communication(
            self._profiler.events(), on_gpu=self._device.type == "cuda"
        )
        self._traced = {
            "traced_steps": steps,
            "ms_per_step": round(traced_ms, 3),
            "under_way_ms": round(under_way / steps, 3),
            "alone_ms": round(waited / steps, 3),
            "share_alone": round(waited / steps / traced_ms, 4),
        }
        try:
            self._folder.mkdir(exist_ok=True)
            self._profiler.export_chrome_trace(str(self._folder / TRACE_NAME))
        except (OSError, RuntimeError) as error:
            logger.warning("the trace cannot be written to %s: %s", self._folder, error)
        self._profiler = None


def communication(events: Any, *, on_gpu: bool) -> tuple[float, float]:
    """Milliseconds in which a collective was running, and those in which nothing else was.

    `events` are a profiler's. On a CPU an operation of torch is something else. On a GPU only what
    the GPU itself did counts, kernels and copies: the host runs ahead of it, so that its operations
    overlap with collectives that nothing hides. Ranges that somebody named (`record_function`)
    come back as events of the GPU as well and are not work.
    """
    collectives: list[Interval] = []
    work: list[Interval] = []
    for event in events:
        if on_gpu and not _of_the_gpu(event):
            continue
        interval = (event.time_range.start / 1e3, event.time_range.end / 1e3)
        name = event.name.lower()
        if name.startswith(_ON_DEVICE if on_gpu else _ON_HOST):
            collectives.append(interval)
        elif on_gpu or name.startswith("aten::"):
            work.append(interval)
    collectives, work = merged(collectives), merged(work)
    return length(collectives), length(collectives) - length(overlaps(collectives, work))


def _of_the_gpu(event: Any) -> bool:
    """Whether an event is a kernel, a copy or a fill of the GPU."""
    return str(event.device_type) == "DeviceType.CUDA" and not event.is_user_annotation


def merged(intervals: list[Interval]) -> list[Interval]:
    """The same intervals, sorted, overlaps counted once."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def overlaps(first: list[Interval], second: list[Interval]) -> list[Interval]:
    """The intersection of two merged lists."""
    found, at = [], 0
    for start, end in first:
        while at < len(second) and second[at][1] <= start:
            at += 1
        look = at
        while look < len(second) and second[look][0] < end:
            found.append((max(start, second[look][0]), min(end, second[look][1])))
            look += 1
    return found


def length(intervals: list[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def in_rows(content: dict[str, Any]) -> list[str]:
    """The table for people."""
    rows = [f"{'of a step':24}{'ms':>10}{'share':>8}"]
    for name, part in content["parts"].items():
        rows.append(f"{name:24}{part['ms']:10.2f}{part['share']:8.1%}")
    rows.append(f"{'all':24}{content['ms_per_step']:10.2f}{'':8} ({content['timed_steps']} steps)")
    traced = content["communication"]
    if traced:
        rows += ["", f"{'communication':24}{'ms':>10}{'share':>8}"]
        share = traced["under_way_ms"] / traced["ms_per_step"]
        rows.append(f"{'running':24}{traced['under_way_ms']:10.2f}{share:8.1%}")
        alone = f"{traced['alone_ms']:10.2f}{traced['share_alone']:8.1%}"
        rows.append(f"{'with nothing else':24}{alone} ({traced['traced_steps']} traced steps)")
    rows += ["", f"{'between steps':24}{'ms each':>10}{'times':>8}{'ms a step':>12}"]
    for name, beside in content["beside"].items():
        each = f"{beside['ms_each']:10.2f}{beside['times']:8d}"
        rows.append(f"{name:24}{each}{beside['ms_per_step']:12.2f}")
    return rows
