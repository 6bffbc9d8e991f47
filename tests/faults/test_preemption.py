"""Every kind of request to stop, one after the other on one run of two processes.

At its end the run has the bytes and the metrics of one that was never stopped.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import LAUNCH_RUN, metric_lines, status
from launches import Launch, assert_preempted, checkpoint_steps, launcher
from safetensors.torch import load_file

SETTINGS = [
    *["train.max_steps=90", "train.epochs=99", "train.checkpoint_every_steps=30"],
    # Every stop falls on a step whose validation is due, which is left to the next launch.
    *["train.validate_every_steps=2", "data.num_workers=1"],
]


def to_launcher(launch: Launch, number: signal.Signals) -> None:
    os.kill(launch.process.pid, number)


def to_ranks(launch: Launch, *numbers: signal.Signals) -> None:
    for number in numbers:
        for rank in launch.ranks():
            rank.send_signal(number)


STOPS: list[tuple[str, Callable[[Launch], None], tuple[str, ...]]] = [
    ("SIGTERM to the launcher", lambda x: to_launcher(x, signal.SIGTERM), ("SIGTERM",)),
    (
        "SIGUSR1 to the ranks, twice, and SIGCONT",
        lambda x: to_ranks(x, signal.SIGUSR1, signal.SIGCONT, signal.SIGUSR1),
        ("SIGUSR1",),
    ),
    ("SIGUSR2 to one rank", lambda x: x.ranks()[1].send_signal(signal.SIGUSR2), ("SIGUSR2",)),
    ("Ctrl-C", lambda x: to_launcher(x, signal.SIGINT), ("SIGINT",)),
    ("kill -9 of the launcher", lambda x: to_launcher(x, signal.SIGKILL), ("SIGTERM",)),
    ("SIGUSR1 to the launcher", lambda x: to_launcher(x, signal.SIGUSR1), ("SIGTERM",)),
]

ENDS_WITH_75 = ("SIGUSR2 to one rank", "Ctrl-C")  # under `python -m launch run`


def metrics(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = metric_lines(run_dir, kind)
    return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in lines]


@pytest.mark.timeout(900)  # nine launches
def test_stopped_in_every_way_and_never(shards: Path, tmp_path: Path) -> None:
    run_dir, settings = tmp_path / "stopped", [*SETTINGS, f"data.shards={shards}"]
    at = 0
    for name, stop, reasons in STOPS:
        by = LAUNCH_RUN if name in ENDS_WITH_75 else launcher()
        launch = Launch(run_dir, *settings, by=by)
        launch.wait_for_steps()
        stop(launch)
        code = launch.wait()
        assert code == 75 if name in ENDS_WITH_75 else code != 0, (name, code)
        assert "Traceback" not in launch.output() or name not in ENDS_WITH_75
        step = assert_preempted(launch, *reasons)
        if name == "Ctrl-C":  # answered at once, by one rank
            assert launch.output().count("SIGINT: stopping after this") == 1
        assert step >= at + 3, name
        if at:
            assert f"resumed from {run_dir}/checkpoints/step-{at:08d} at step {at}" in (
                launch.own_log()
            )
        at = step
    assert status(run_dir)["restarts"] == len(STOPS) - 1

    launch = Launch(run_dir, *settings, by=launcher(), PET_SIGNALS_TO_HANDLE="SIGTERM,SIGUSR2")
    launch.wait_for_steps()
    to_launcher(launch, signal.SIGUSR2)  # it passes the signal on
    launch.wait()
    at = assert_preempted(launch, "SIGUSR2")

    launch = Launch(run_dir, *settings, by=launcher())
    assert launch.wait() == 0, launch.output()
    assert status(run_dir)["state"] == "done"
    assert checkpoint_steps(run_dir)[-1] == 90

    never = Launch(tmp_path / "never", *settings, by=launcher())
    assert never.wait() == 0, never.output()
    assert re.search("engine ddp, world_size 2, backend gloo", never.own_log())
    for kind in ("train", "validation"):
        assert metrics(run_dir, kind) == metrics(never.run_dir, kind)
    weights = [
        (run / "checkpoints/step-00000090/export/model.safetensors").read_bytes()
        for run in (run_dir, never.run_dir)
    ]
    assert weights[0] == weights[1]
    best = [load_file(run / "best" / "model.safetensors") for run in (run_dir, never.run_dir)]
    assert all((best[0][name] == best[1][name]).all() for name in best[1])
