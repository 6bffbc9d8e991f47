"""What happens to a job when one of its starts has ended: a table."""

from __future__ import annotations

from typing import Any

import pytest

from launch.job_hooks import verdict

DONE = {"state": "done", "step": 40, "exit_code": 0}
RUNNING = {"state": "running", "step": 12}
PREEMPTED = {"state": "preempted", "step": 12, "reason": "SIGUSR1 after step 12", "exit_code": 75}
FAILED = {"state": "failed", "step": 12, "reason": "lost contact\nto a rank", "exit_code": 1}
WRONG = {"state": "failed", "step": 0, "reason": "train.epochs is wrong", "exit_code": 2}


@pytest.mark.parametrize(
    ("status", "before", "signal_name", "restarts", "starts_without_checkpoint", "code", "words"),
    [
        (DONE, {}, "", 0, 0, 0, "done"),
        (DONE, DONE, "USR1", 200, 9, 0, "done"),  # finished by an earlier start
        (PREEMPTED, {}, "USR1", 0, 0, 75, "stopped at step 12; requeueing (restart 1)"),
        (
            PREEMPTED,
            RUNNING,
            "",
            8,
            0,
            75,
            "(restart 9)",
        ),  # the ranks received it, the script did not
        (PREEMPTED, {}, "USR1", 9, 0, 1, "giving up after 9 restarts (MAX_RESTARTS)"),
        # Stopped before it reached its run directory: the file is that of the start before.
        (FAILED, FAILED, "USR1", 5, 1, 75, "stopped by SIGUSR1 before it could save"),
        (
            {},
            {},
            "TERM",
            0,
            1,
            75,
            "stopped by SIGTERM before it could save; requeueing",
        ),
        # A time limit that leaves no time for a step.
        (
            {},
            {},
            "USR1",
            2,
            3,
            1,
            "after 3 starts in a row without a new checkpoint (MAX_RETRIES=2)",
        ),
        # A user error recurs at each start.
        (
            WRONG,
            {},
            "",
            0,
            1,
            2,
            "failed with an error that a restart cannot fix: train.epochs is wrong",
        ),
        (WRONG, FAILED, "USR1", 0, 1, 2, "failed with an error that a restart cannot fix"),
        # Any other failure: retried as long as there is progress, and a few times without.
        (FAILED, {}, "", 0, 1, 75, "failed at step 12 (lost contact); requeueing"),
        (FAILED, RUNNING, "", 8, 0, 75, "(restart 9)"),
        (FAILED, RUNNING, "", 8, 2, 75, "(restart 9)"),
        (FAILED, RUNNING, "", 8, 3, 1, "giving up after 3 starts in a row without"),
        # No reason reported.
        (
            RUNNING,
            FAILED,
            "",
            2,
            1,
            75,
            "ended without reporting a reason after step 12: killed, or",
        ),
        ({}, {}, "", 0, 1, 75, "ended before it wrote status.json"),
        (WRONG, WRONG, "", 2, 3, 1, "ended before it wrote status.json"),
    ],
)
def test_verdict(
    status: dict[str, Any],
    before: dict[str, Any],
    signal_name: str,
    restarts: int,
    starts_without_checkpoint: int,
    code: int,
    words: str,
) -> None:
    found = verdict(
        status,
        before,
        signal_name=signal_name,
        restarts=restarts,
        starts_without_checkpoint=starts_without_checkpoint,
        max_restarts=9,
        max_retries=2,
    )
    assert found[0] == code
    assert words in found[1]
