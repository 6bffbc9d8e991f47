"""Real processes: a rank ends with its launcher, however that ends, but not with a shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mmsa.process.launcher import is_launcher, requested_processes

ROOT = Path(__file__).resolve().parent.parent.parent

PARENT = """\
import os, subprocess, sys, time
if "marked" in sys.argv:
    os.environ["MMSA_LAUNCHER_PID"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""
CHILD = """\
import os, signal, time
from mmsa.process.launcher import end_with_launcher
signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM", flush=True), os._exit(0)))
print(os.getpid(), end_with_launcher(), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal")
@pytest.mark.parametrize(
    ("name", "ends"), [("torchrun", True), ("accelerate", True), ("run", False), ("marked", True)]
)
def test_a_process_ends_with_its_launcher(tmp_path: Path, name: str, ends: bool) -> None:
    """`python -m launch run` marks itself, however it was started."""
    script = tmp_path / name
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), CHILD, name], cwd=ROOT, stdout=subprocess.PIPE, text=True
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


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("python /bin/accelerate launch --num_processes 2 train.py", 2),
        ("python /bin/accelerate launch --num-processes=3 --cpu train.py", 3),
        ("python -m accelerate.commands.launch --num_processes 2 train.py", 2),
        ("python /bin/accelerate launch --num_processes N train.py", None),
        ("python /bin/accelerate launch train.py --num_processes 2", None),
        ("python /bin/accelerate launch --config_file a.yaml train.py", None),
        ("python train.py --num_processes 2", None),
    ],
)
def test_how_many_processes_a_launcher_was_told_to_start(
    command_line: str, expected: int | None
) -> None:
    assert requested_processes(command_line.split()) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [("--num_processes 2", 2), ("--num_processes 2 --cpu", 2), ("--num_processes 1", 1), ("", 1)],
)
def test_one_process_knows_that_accelerate_launch_was_to_start_more(
    tmp_path: Path, options: str, expected: int
) -> None:
    """Without a configuration file it starts one and says nothing. The variables are its own."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    words = [*options.split(), "--num_machines", "1", "train.py"]
    arguments = _validate_launch_command(launch_command_parser().parse_args(words))[0]
    environment = prepare_simple_launcher_cmd_env(arguments)[1]
    script = tmp_path / "accelerate"
    script.write_text("import subprocess, sys\nsubprocess.run([sys.executable, '-c', WORLD])\n")
    code = "from mmsa.process.runtime import world_from_environment as world; print(world())"
    script.write_text(script.read_text().replace("WORLD", repr(code)))
    said = subprocess.run(
        [sys.executable, str(script), "launch", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"unheeded_processes={expected}," in said
