"""A real training launch under observation: its step, its processes, and how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil
from forked_launch import ForkedLaunch
from harness import (
    EXECUTE_ALL,
    LAUNCH,
    ROOT,
    TIMEOUT_S,
    TINY,
    environment_of_launches,
    forked,
    launch_command,
    status,
)
from processes import tree

from mmsa.checkpoint_folders import is_whole

ENDS_WITHIN_S = 60.0  # an upper limit; it does not slow a test down
CONFIG_FILES = {"ddp": "accelerate_config.yaml"} | {
    engine: f"launch/accelerate/{engine}.yaml" for engine in ("zero1", "zero2", "zero3")
}


def launcher(engine: str = "ddp", processes: int = 2) -> list[str]:
    return launch_command(processes, CONFIG_FILES[engine])


def _hear_the_terminal() -> None:
    """Handle signals as at a terminal: background jobs and nohup would ignore these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Launch:
    """One launch on a run directory, started by the constructor."""

    process: subprocess.Popen[str] | ForkedLaunch

    def __init__(
        self,
        run_dir: Path,
        *settings: str,
        by: list[str],
        fork: bool = False,
        **environment: str,
    ) -> None:
        """`by` is the command of the launcher; with `fork` it is not executed (fork_server.py)."""
        self.run_dir = run_dir
        self.log = run_dir / "log.txt"
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        self._output: IO[str] = open(run_dir.with_name(f"{run_dir.name}.out"), "w+")  # noqa: SIM115
        command = [*by, "train.py", *TINY, f"run.dir={run_dir}", *settings]
        if fork and not EXECUTE_ALL:
            words, config = command[len(LAUNCH) - 1 :], by[by.index("--config_file") + 1]
            self.process = forked(words, config, output=Path(self._output.name))
        else:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**environment_of_launches(), **environment},
                stdout=self._output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=_hear_the_terminal,
            )
        self._seen: dict[int, psutil.Process] = {}

    def output(self) -> str:
        return Path(self._output.name).read_text()

    def own_log(self) -> str:
        """What this launch has written to `log.txt`."""
        if not self.log.exists():
            return ""
        return self.log.read_bytes()[self._log_begins :].decode()

    def steps(self) -> list[int]:
        """The steps that this launch has logged."""
        return [int(step) for step in re.findall(r" step (\d+)/\d+ ", self.own_log())]

    def look(self) -> None:
        """Remember the processes that exist now."""
        self._seen |= {process.pid: process for process in tree(self.process.pid)}

    def wait_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not true():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        self.look()

    def wait_for_steps(self, number: int = 3) -> None:
        """Wait until this launch has logged so many steps."""
        self.wait_until(lambda: len(self.steps()) >= number)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, in the order in which they were started."""
        children = psutil.Process(self.process.pid).children()
        found = [one for one in children if "train.py" in one.cmdline() or one.name() == "rank"]
        return sorted(found or [psutil.Process(self.process.pid)], key=lambda one: one.pid)

    def wait(self) -> int:
        """Wait for the end of the launch and of all its processes; returns the exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output()
            self.look()
            time.sleep(0.05)
        _, left = psutil.wait_procs(list(self._seen.values()), timeout=ENDS_WITHIN_S)
        assert left == [], f"left behind: {left}\n{self.output()}"
        return int(self.process.returncode)

    def kill(self) -> None:
        """kill -9 of every process at once, as a power cut would."""
        self.look()
        members = [one for one in self._seen.values() if one.is_running()]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    act(member)
        self.process.wait()  # first: psutil would take its exit code
        psutil.wait_procs(members, timeout=ENDS_WITHIN_S)


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps of the whole checkpoints, oldest first."""
    folder = run_dir / "checkpoints"
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if is_whole(path))


def assert_preempted(launch: Launch, *reasons: str) -> int:
    """Assert that the run was preempted for one of `reasons` and has saved; returns the step."""
    told = status(launch.run_dir)
    assert (told["state"], told["exit_code"]) == ("preempted", 75), launch.output()
    assert told["reason"].startswith(reasons), told
    assert checkpoint_steps(launch.run_dir)[-1] == told["step"]
    assert launch.output().count(f"stopped by {told['reason']}") == 1
    step: int = told["step"]
    return step
