"""What NCCL's watchdog said is found in a job's log, of this start alone."""

from __future__ import annotations

import signal
from pathlib import Path

from launch.job_hooks import verdict
from launch.nccl_endings import log_of_start, nccl_ending
from launch.ranks import Ended, RankFailure
from launch.run import conclude

# As torch writes them (ProcessGroupNCCL.cpp), cut.
TIMED_OUT = (
    "[rank1]:[E1128 12:00:01.1 ProcessGroupNCCL.cpp:700] [Rank 1] Watchdog caught collective "
    "operation timeout: WorkNCCL(SeqNum=412, OpType=ALLREDUCE, NumelIn=6553600, NumelOut=6553600, "
    "Timeout(ms)=1800000) ran for 1800024 milliseconds before timing out.\n"
)
FAILED = (
    "[rank0]:[E1128 12:00:01.1 ProcessGroupNCCL.cpp:2100] [PG ID 0 PG GUID 0 Rank 0] x\n"
    "[rank0]:[E1128] [Rank 0] Process group watchdog thread terminated with exception: NCCL error: "
    "remote process exited or there was a network error, NCCL version 2.27\n"
    "ncclRemoteError: A call failed possibly due to a network error.\nLast error:\n"
)
STUCK = "[Rank 3] ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress\n"
MARKER = "job 7, restart "


def test_each_ending_is_told_as_what_it_is() -> None:
    assert nccl_ending("step 12 loss 0.7\n") is None
    timed_out = nccl_ending(f"step 12\n{TIMED_OUT}{FAILED}")
    assert timed_out is not None
    assert timed_out.startswith(
        "NCCL's watchdog ended rank 1: collective 412 (allreduce) did not finish in 1800 s"
    )
    failed = nccl_ending(FAILED)
    assert failed is not None
    assert "ended rank 0 after an error of a collective (ncclRemoteError: A call failed" in failed
    stuck = nccl_ending(STUCK)
    assert stuck is not None
    assert "watchdog of rank 3 was itself stuck for 480 s" in stuck


def test_only_the_log_of_the_last_start_counts(tmp_path: Path) -> None:
    log = tmp_path / "train-7.log"
    log.write_text(f"{MARKER}0: 1 node\n{TIMED_OUT}{MARKER}1: 1 node\nstep 3\n")
    assert nccl_ending(log_of_start(log, MARKER)) is None
    with log.open("a") as file:
        file.write(STUCK)
    assert "stuck" in str(nccl_ending(log_of_start(log, MARKER)))
    assert log_of_start(tmp_path / "none.log", MARKER) == ""


def test_a_job_that_nccl_ended_says_so_and_is_requeued() -> None:
    code, words = verdict(
        {"state": "running", "step": 12},
        {},
        signal_name="",
        restarts=0,
        starts_without_checkpoint=1,
        max_restarts=9,
        max_retries=2,
        nccl=nccl_ending(TIMED_OUT),
    )
    assert code == 75
    assert "after step 12: NCCL's watchdog ended rank 1: collective 412" in words


def test_a_launch_whose_rank_was_aborted_names_the_suspect(capsys: object) -> None:
    ended = Ended(first_failure=RankFailure(1, -signal.SIGABRT))
    assert conclude(ended, {"state": "running", "step": 12}, None) == 1
    said = capsys.readouterr().err  # type: ignore[attr-defined]
    assert "rank 1 was killed by SIGABRT, on GPUs often by NCCL's watchdog" in said
