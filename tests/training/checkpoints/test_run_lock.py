"""One launch at a time on a run directory."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
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
