"""Real processes: a rank ends with its launcher, however that ends, but not with a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmsa.process.launcher import is_launcher

ROOT = Path(__file__).resolve().parent.parent.parent

PARENT = """\
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
CHILD = """\
import os, signal, time
from mmsa.process.launcher import end_with_launcher
print(os.getpid(), end_with_launcher(), flush=True)
signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM", flush=True), os._exit(0)))
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal")
@pytest.mark.parametrize(
    ("name", "ends"), [("torchrun", True), ("accelerate", True), ("run", False)]
)
def test_a_process_ends_with_its_launcher(tmp_path: Path, name: str, ends: bool) -> None:
    script = tmp_path / name
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), CHILD], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, was_set = parent.stdout.readline().split()
    child = psutil.Process(int(pid))
    assert was_set == str(ends)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    if ends:
        assert parent.stdout.readline() == "SIGTERM\n"
        psutil.wait_procs([child], timeout=30)
        assert not child.is_running()
    else:
        assert child.is_running()
        child.kill()
        assert parent.stdout.readline() == ""


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("/venv/bin/python /venv/bin/accelerate launch train.py", True),
        ("/venv/bin/python -m accelerate.commands.accelerate_cli launch train.py", True),
        ("python3 -m accelerate.commands.launch train.py", True),
        ("python /venv/lib/accelerate/commands/launch.py train.py", True),
        ("/venv/bin/python /venv/bin/torchrun --nproc_per_node 2 train.py", True),
        ("python -m torch.distributed.run train.py", True),
        ("python3.11 -X dev /opt/bin/accelerate-launch train.py", True),
        ("python -u -m deepspeed.launcher.launch train.py", True),
        ("/bin/bash", False),
        ("-zsh", False),
        ("/bin/sh job.sh accelerate", False),
        ("python train.py", False),
        ("slurmstepd: [4711.0]", False),
    ],
)
def test_what_a_launcher_is(command_line: str, expected: bool) -> None:
    assert is_launcher(command_line.split()) is expected


def test_a_shell_with_a_launch_in_its_arguments_is_not_a_launcher() -> None:
    assert not is_launcher(["/bin/bash", "-c", "nohup accelerate launch train.py"])
    assert not is_launcher(["bash", "-c", "torchrun"])
