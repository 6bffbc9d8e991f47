"""What becomes of a job when a start of it has ended: a table."""

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
    ("status", "before", "heard", "restarts", "in_vain", "code", "words"),
    [
        (DONE, {}, "", 0, 0, 0, "done"),
        (DONE, DONE, "USR1", 200, 9, 0, "done"),  # finished by an earlier start
        (PREEMPTED, {}, "USR1", 0, 0, 75, "stopped at step 12; to be started again (restart 1)"),
        (PREEMPTED, RUNNING, "", 8, 0, 75, "(restart 9)"),  # the ranks heard it, the script not
        (PREEMPTED, {}, "USR1", 9, 0, 1, "not started again after 9 restarts (MAX_RESTARTS)"),
        # Stopped before it reached its run directory: what the file says is of the start before.
        (FAILED, FAILED, "USR1", 5, 1, 75, "stopped by SIGUSR1 before it could save"),
        (
            {},
            {},
            "TERM",
            0,
            1,
            75,
            "stopped by SIGTERM before it could save; to be started again",
        ),
        # A time limit that leaves no time for a step.
        ({}, {}, "USR1", 2, 3, 1, "3 starts in a row brought no checkpoint (MAX_RETRIES=2)"),
        # What its user has to mend comes back at each start.
        (WRONG, {}, "", 0, 1, 2, "failed, and would fail again: train.epochs is wrong"),
        (WRONG, FAILED, "USR1", 0, 1, 2, "failed, and would fail again"),
        # Any other failure: as often as it comes further, and a few times where it does not.
        (FAILED, {}, "", 0, 1, 75, "failed at step 12 (lost contact); to be started again"),
        (FAILED, RUNNING, "", 8, 0, 75, "(restart 9)"),
        (FAILED, RUNNING, "", 8, 2, 75, "(restart 9)"),
        (FAILED, RUNNING, "", 8, 3, 1, "not started again: 3 starts in a row brought no"),
        # No word at all.
        (RUNNING, FAILED, "", 2, 1, 75, "ended without a word after step 12: killed, or its"),
        ({}, {}, "", 0, 1, 75, "ended before it could say anything in status.json"),
        (WRONG, WRONG, "", 2, 3, 1, "ended before it could say anything in status.json"),
    ],
)
def test_verdict(
    status: dict[str, Any],
    before: dict[str, Any],
    heard: str,
    restarts: int,
    in_vain: int,
    code: int,
    words: str,
) -> None:
    found = verdict(
        status,
        before,
        heard=heard,
        restarts=restarts,
        in_vain=in_vain,
        max_restarts=9,
        max_retries=2,
    )
    assert found[0] == code
    assert words in found[1]
