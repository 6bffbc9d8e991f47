"""One launch at a time on a run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsa.errors import UserError
from mmsa.training.checkpoints.run_lock import lock_run

HOLDS = """
import sys, time
from pathlib import Path
from mmsa.training.checkpoints.run_lock import lock_run
lock = lock_run(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def test_a_second_launch_is_told_who_trains_there(tmp_path: Path) -> None:
    run_dir = tmp_path / "new" / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(run_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError) as refused:
            lock_run(run_dir, wait_s=0.2)
        since = json.loads((run_dir / ".lock").read_text())["since"]
        assert (
            f"{run_dir} is being trained by another launch (process {holder.pid} on "
            f"{socket.gethostname()} since {since}). Wait for it, end it, or "
            "choose another run.dir"
        ) == str(refused.value)
    finally:
        holder.kill()  # -9: nothing is cleaned up
        holder.communicate()
    with lock_run(run_dir, wait_s=0.2):
        assert json.loads((run_dir / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            lock_run(run_dir, wait_s=0)
    lock_run(run_dir, wait_s=0).release()


def test_a_removed_lock_file_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    status = {"state": "running", "host": socket.gethostname(), "pid": holder.pid}
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        status["started"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        (tmp_path / "status.json").write_text(json.dumps(status))
        (tmp_path / ".lock").unlink()
        with pytest.raises(UserError, match=rf"another launch \(process {holder.pid} on "):
            lock_run(tmp_path, wait_s=0.2)
        # The same on a file system that does not lock directories.
        monkeypatch.setattr(fcntl, "flock", locks_no_directory)
        with pytest.raises(UserError, match=rf"another launch \(process {holder.pid} on "):
            lock_run(tmp_path, wait_s=0.2)
    finally:
        holder.kill()
        holder.communicate()
    lock_run(tmp_path, wait_s=0).release()  # its status still says running
    status |= {"pid": os.getppid(), "started": "2020-01-01T00:00:00+0000"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    lock_run(tmp_path, wait_s=0).release()  # another process has its number by now


def locks_no_directory(
    file: int, operation: int, flock: Callable[[int, int], None] = fcntl.flock
) -> None:
    """As on NFS."""
    if stat.S_ISDIR(os.fstat(file).st_mode):
        raise OSError(errno.EBADF, "Bad file descriptor")
    flock(file, operation)


def test_a_launch_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    lock = lock_run(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        lock.release()
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    finally:
        process.kill()
        process.communicate()


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(file: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    monkeypatch.setattr(logging.getLogger("mmsa"), "propagate", True)
    with lock_run(tmp_path):
        assert "nothing prevents a second launch" in caplog.text


def test_a_place_that_can_be_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be a run directory"):
        lock_run(tmp_path / "file" / "run")
