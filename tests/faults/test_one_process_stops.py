"""Stops of one process: Ctrl-C, a launcher that is killed, the time limit, and the start-up."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from harness import TINY, status
from launches import Launch, assert_preempted, launcher

from mmsa.process.command import Command, run_command
from mmsa.process.stop_request import StoppedInStartUp

SETTINGS = ["train.epochs=900", "train.validate_every_steps=500", "data.num_workers=1"]
PLAIN = [sys.executable]


def test_stopped_by_ctrl_c_by_a_killed_launcher_and_by_the_time_limit(
    shards: Path, tmp_path: Path
) -> None:
    run_dir, settings = tmp_path / "run", [*SETTINGS, f"data.shards={shards}"]
    launch = Launch(run_dir, *settings, by=PLAIN)
    launch.wait_for_steps()
    for _ in range(2):
        os.kill(launch.process.pid, signal.SIGINT)
    assert launch.wait() == 75
    at = assert_preempted(launch, "SIGINT")
    assert launch.output().count("SIGINT: stopping after this") == 1
    assert "Traceback" not in launch.output()

    launch = Launch(run_dir, *settings, by=launcher(processes=1))
    launch.wait_for_steps()
    os.kill(launch.process.pid, signal.SIGKILL)
    launch.wait()
    at, before = assert_preempted(launch, "SIGTERM"), at
    assert at >= before + 3

    launch = Launch(run_dir, *settings, "run.max_time=00:00:15", by=PLAIN)
    assert launch.wait() == 75
    assert assert_preempted(launch, "run.max_time") > at
    assert status(run_dir)["restarts"] == 2


def test_a_signal_during_the_start_up_ends_it(shards: Path, tmp_path: Path) -> None:
    launch = Launch(tmp_path / "run", *SETTINGS, f"data.shards={shards}", by=PLAIN)
    launch.wait_until(launch.log.exists)
    os.kill(launch.process.pid, signal.SIGTERM)
    assert launch.wait() == 75
    told = status(launch.run_dir)
    assert (told["state"], told["exit_code"], told["step"]) == ("preempted", 75, 0)
    assert told["reason"] == "SIGTERM during start-up; the same command resumes"
    assert "Traceback" not in launch.output()


@pytest.mark.parametrize(
    ("name", "world_size", "state", "code"),
    [("SIGTERM", 2, "failed", 1), ("SIGTERM", 1, "preempted", 75), ("SIGUSR1", 2, "preempted", 75)],
)
def test_a_sigterm_to_one_of_several_starting_ranks_is_not_a_preemption(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    world_size: int,
    state: str,
    code: int,
) -> None:
    """The launcher sends it when another rank has ended, and sends no other signal by itself."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)  # of a launched rank; this process continues

    def body(command: Command) -> None:
        command.report_to(tmp_path / "status.json", resumes=False)
        raise StoppedInStartUp(name)

    assert run_command(body) == code
    assert codes == [code] * (world_size > 1)
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == (state, code)


def test_a_starting_rank_whose_peer_failed_does_not_advise_to_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peer's message says what to mend."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(os, "_exit", lambda code: None)  # this process continues
    ending: list[str] = []
    for has_failed in (False, True):

        def body(command: Command, has_failed: bool = has_failed) -> None:
            command.report_to(tmp_path / "status.json", resumes=False)
            if has_failed:
                content = {"state": "failed", "exit_code": 2, "reason": "no such name"}
                (tmp_path / "status.json").write_text(json.dumps(content))
            raise StoppedInStartUp("SIGTERM")

        assert run_command(body) == 1
        ending.append(capsys.readouterr().err)
        if has_failed:
            assert status(tmp_path)["reason"] == "no such name"
        else:
            (tmp_path / "status.json").unlink()
    assert ending[0].endswith("else a scheduler ended the run, and the same command begins again\n")
    assert ending[1] == (
        "[rank 1] error: ended by SIGTERM during start-up: another rank has failed, and says why\n"
    )


@pytest.mark.parametrize(("rank", "said"), [("0", "interrupted\n"), ("1", "")])
def test_ctrl_c_of_an_evaluation_is_said_by_one_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, said: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)  # of a launched rank; this process continues

    def body(command: Command) -> None:
        raise KeyboardInterrupt

    assert run_command(body) == 130
    assert (codes, capsys.readouterr().err) == ([130], said)


def test_signals_are_as_before_when_a_run_has_ended(shards: Path, tmp_path: Path) -> None:
    from train import main as train_main

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path / 'run'}", "train.max_steps=1"]
    assert train_main(settings) == 0
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
