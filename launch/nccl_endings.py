"""What NCCL's watchdog said before it ended a rank, read from the log of a job.

The watchdog is a thread of torch in C++. Where a collective does not finish in time, or a peer is
gone, it aborts the process: no exception reaches Python, so `status.json` still says "running".
"""

from __future__ import annotations

import re
from pathlib import Path

_READ_BYTES = 8 * 2**20  # of the end of a log

# As torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp writes them.
_TIMED_OUT = re.compile(
    r"\[Rank (\d+)\][^\n]*Watchdog caught collective operation timeout: "
    r"(?:WorkNCCL\(SeqNum=(\d+), OpType=(\w+)[^\n]*?ran for (\d+) milliseconds)?"
)
_STUCK = re.compile(r"\[Rank (\d+)\][^\n]*ProcessGroupNCCL's watchdog got stuck for (\d+) seconds")
_FAILED = re.compile(
    r"\[Rank (\d+)\][^\n]*(?:Watchdog caught exception|watchdog thread terminated with exception)"
    r"[^\n]*"
)
_NCCL_SAYS = re.compile(r"^(nccl\w+Error: .*?)\.?$", re.M)
_SAME = "the same command resumes from the last checkpoint"


def nccl_ending(log: str) -> str | None:
    """How NCCL ended the first rank that its watchdog speaks of in `log`; None: it did not."""
    if found := _TIMED_OUT.search(log):
        rank, number, kind, ms = found.groups()
        what = (
            f"collective {number} ({kind.lower()}) did not finish in {int(ms) // 1000} s"
            if ms
            else ("a collective did not finish in time")
        )
        return (
            f"NCCL's watchdog ended rank {rank}: {what} (run.collective_timeout_s), because "
            "another rank hangs, is slow or is gone. What each rank did last is in RUN/nccl/; "
            f"{_SAME}"
        )
    if found := _STUCK.search(log):
        return (
            f"NCCL's watchdog of rank {found[1]} was itself stuck for {found[2]} s and ended it: a "
            f"call of the GPU's driver hangs; check that node's GPUs (nvidia-smi); {_SAME}"
        )
    if found := _FAILED.search(log):
        said = _NCCL_SAYS.search(log, found.start())
        reason = f" ({said[1]})" if said else ""
        return (
            f"NCCL's watchdog ended rank {found[1]} after an error of a collective{reason}: "
            f"another rank or the network between them is gone; {_SAME}"
        )
    return None


def log_of_start(path: str | Path, marker: str) -> str:
    """The end of a job's log from the last line with `marker` on; "" if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _READ_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text[max(0, text.rfind(marker)) :]
