"""A rank that dies, and one that hangs: the others wait no longer than the timeout."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from harness import LAUNCH_RUN, status
from launches import Launch, checkpoint_steps, launcher

SETTINGS = ["train.epochs=90", "train.checkpoint_every_steps=2", "train.validate_every_steps=900"]


def test_a_rank_that_dies_ends_the_others_with_its_reason(shards: Path, tmp_path: Path) -> None:
    """The launcher's SIGTERM to the survivors is not a preemption."""
    launch = Launch(tmp_path / "run", *SETTINGS, f"data.shards={shards}", by=LAUNCH_RUN)
    launch.wait_until(lambda: bool(checkpoint_steps(launch.run_dir)))
    launch.ranks()[1].kill()
    assert launch.wait() == 1
    last = launch.output().splitlines()[-1]
    assert last.startswith("error: rank 1 was killed by SIGKILL, often because memory ran out")
    assert last.endswith(f"What the launcher said: {launch.run_dir / 'launch.log'}")
    assert "Traceback" not in launch.output()
    told = status(launch.run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert told["reason"].startswith("lost contact with another rank: it died")
    assert "its machine (127.0.0.1) is gone. Rank 0 noticed" in told["reason"]
    assert told["reason"].endswith("The same command resumes from the last checkpoint")
    # What `running` told stays, and the line has the form of the others.
    assert told["num_steps"] > told["step"] >= checkpoint_steps(launch.run_dir)[-1]
    assert told["samples_per_s"] > 0
    log = (launch.run_dir / "log.txt").read_text()
    assert re.search(r"^[-\d]{10} [:\d]{8},\d{3} error: lost contact", log, re.M)
    assert 'File "' not in launch.output().split("error: lost contact")[1].split("\n")[0]
    assert launch.output().count("error: lost contact") == 1
    assert checkpoint_steps(launch.run_dir)


def test_a_rank_that_hangs_is_ended_by_the_collective_timeout(shards: Path, tmp_path: Path) -> None:
    settings = [*SETTINGS, f"data.shards={shards}", "run.collective_timeout_s=10"]
    launch = Launch(tmp_path / "run", *settings, by=launcher())
    launch.wait_for_steps()
    hanging = launch.ranks()[1]
    hanging.suspend()
    launch.wait_until(lambda: status(launch.run_dir)["state"] == "failed")
    assert "did not answer within run.collective_timeout_s" in status(launch.run_dir)["reason"]
    # The launcher would kill it after 30 s; a rank that wakes up ends at once.
    hanging.resume()
    assert launch.wait() == 1


def test_a_stop_that_a_hanging_rank_does_not_answer_saves_nothing(
    shards: Path, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"data.shards={shards}", "run.stop_timeout_s=2"]
    launch = Launch(tmp_path / "run", *settings, by=launcher(), PET_SHUTDOWN_TIMEOUT="6")
    launch.wait_until(lambda: bool(checkpoint_steps(launch.run_dir)))
    launch.ranks()[1].suspend()
    os.kill(launch.process.pid, signal.SIGTERM)
    assert launch.wait() == 1  # the launcher kills the hanging rank
    told = status(launch.run_dir)
    assert (told["state"], told["exit_code"]) == ("failed", 1)
    assert "received SIGTERM, but the other ranks have not answered for 2 s" in told["reason"]
    assert checkpoint_steps(launch.run_dir)[-1] <= told["step"]
