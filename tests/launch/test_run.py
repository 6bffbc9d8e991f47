"""`python -m launch run`: what it refuses without a rank, what it starts, and how it ends.

Real ranks under it: tests/end_to_end/test_two_processes.py and tests/faults.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import ranks, run
from launch.__main__ import main as launch_main
from launch.ranks import Ended, RankFailure
from launch.site import ROOT
from mmsa.training.checkpoints.run_lock import lock_run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def refused(capsys: Capture, *words: str) -> str:
    capsys.readouterr()
    assert launch_main(["run", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    return said.err


def command_of(capsys: Capture, *words: str) -> list[str]:
    """The words after `accelerate launch` of a dry run."""
    capsys.readouterr()
    assert launch_main(["run", "--dry-run", *words]) == 0
    command, *notes, end = capsys.readouterr().out.splitlines()
    assert all(one.startswith("weights were not looked for: python -m launch") for one in notes)
    assert end == "nothing was started (--dry-run)"
    assert command.startswith("accelerate launch ")
    return command.split()[2:]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-n", "0"], "-n 0: expected the number of processes"),
        (["-n", "3"], "train.global_batch_size=16 does not divide by 3 ranks"),
        (["train.epocs=1"], "train.epocs"),
        (["train.mixed_precision=fp16"], "fp16 needs a GPU"),
        (["data.shards=nowhere"], "nowhere"),
        (["--engine", "zero2", "launch.engine=ddp"], "launch.engine=ddp, but --engine zero2"),
        (["-n", "2", "launch.world_size=4"], "launch.world_size=4, but -n 2"),
        (["--confg", "x"], "unknown option --confg; did you mean --config?"),
        (["--engnie", "zero2"], "unknown option --engnie; did you mean --engine?"),
        (["--engnie=zero2"], "unknown option --engnie; did you mean --engine?"),
        (["--split", "test", "--xyz"], "unknown option --split; known: --help, --num-processes, "),
        (["other.yaml"], "one configuration is expected and 2 are given"),
        (["other"], "other is neither a configuration file nor a setting; expected"),
        (["--import", "no_such_parts"], "--import no_such_parts"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_mistakes_are_one_sentence_and_start_nothing(
    settings: list[str], words: list[str], told: str, tmp_path: Path, capsys: Capture
) -> None:
    assert told in refused(capsys, *settings, *words)
    assert not (tmp_path / "run").exists()


def test_a_directory_of_something_else_or_of_a_running_launch(
    settings: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "run").mkdir()
    with lock_run(tmp_path / "run"):
        assert "is being trained by another launch" in refused(capsys, *settings)
    (tmp_path / "run" / "thesis.tex").touch()
    assert "contains files of something else (thesis.tex" in refused(capsys, *settings)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-run"], "no-run"),
        (["no-run", "--compare", "--out"], ""),
        (["a", "--engine", "zero2"], ""),
    ],
    ids=" ".join,
)
def test_an_evaluation_is_checked_too(words: list[str], told: str, capsys: Capture) -> None:
    capsys.readouterr()
    try:
        code: object = launch_main(["run", "-n", "2", "evaluate.py", *words])
    except SystemExit as error:  # argparse, of an option without its value
        code = error.code
    assert code == 2
    assert told in capsys.readouterr().err


def test_more_processes_than_gpus(
    settings: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "-n 4: 2 GPU(s) are visible here" in refused(capsys, "-n", "4", *settings)


@pytest.mark.parametrize("engine", run.ENGINES)
@pytest.mark.parametrize("folder", ["the root", "elsewhere"])
def test_the_command_means_to_accelerate_what_was_asked_for(
    settings: list[str],
    engine: str,
    folder: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    if folder == "elsewhere":
        monkeypatch.chdir(tmp_path)
        settings[0] = str(ROOT / settings[0])
    command = command_of(capsys, "-n", "2", "--engine", engine, *settings)
    meant = _validate_launch_command(launch_command_parser().parse_args(command))[0]
    assert meant.num_processes == 2
    assert (meant.multi_gpu, meant.use_deepspeed) == (engine == "ddp", engine != "ddp")
    assert Path(meant.training_script).samefile(ROOT / "train.py")
    if engine != "ddp":
        expected = ROOT / "launch" / "deepspeed" / f"{engine}.json"
        assert Path(meant.deepspeed_config_file).samefile(expected)
    shape = [f"launch.engine={engine}", "launch.world_size=2"]
    assert meant.training_script_args == ["--config", *settings, *shape]


def test_every_way_of_writing_it_is_the_same_command(settings: list[str], capsys: Capture) -> None:
    file, *overrides = settings
    expected = command_of(capsys, "-n", "2", "--engine", "zero1", file, *overrides)
    for words in (
        [file, *overrides, "-n", "2", "--engine", "zero1"],
        ["--engine", "zero1", file, overrides[0], "--num-processes=2", *overrides[1:]],
        ["-n", "2", "--engine", "zero1", "train.py", "--config", file, *overrides],
        ["-n", "2", "--engine", "zero1", "--", file, *overrides],
    ):
        assert command_of(capsys, *words) == expected, words
    shape = ["launch.world_size=2", "launch.engine=zero1"]
    assert command_of(capsys, file, *overrides, *shape)[:6] == expected[:6]
    assert command_of(capsys, file, *overrides)[2:4] == ["--num_processes", "1"]
    modules = ["--import", "json", "--import", "csv"]
    for words in ([*modules, *settings], [*modules[:2], file, *modules[2:], *overrides]):
        assert command_of(capsys, *words)[-4:] == modules


@pytest.mark.parametrize(
    ("ended", "status", "code", "told"),
    [
        (Ended(), {"state": "done", "exit_code": 0}, 0, ""),
        (Ended(), {}, 0, ""),  # of a finished run, or of an evaluation
        (Ended(first_failure=RankFailure(0, 2)), {"exit_code": 2}, 2, ""),
        (Ended(first_failure=RankFailure(1, 2)), {}, 2, ""),  # before the run directory was known
        (Ended(first_failure=RankFailure(0, 75)), {"exit_code": 75}, 75, ""),
        (Ended(signal_name="SIGINT"), {"exit_code": 75}, 75, ""),
        (Ended(signal_name="SIGTERM"), {"exit_code": 0}, 0, ""),  # it came after the last step
        (Ended(signal_name="SIGINT"), {}, 130, ""),
        (Ended(signal_name="SIGTERM"), {}, 1, "stopped by SIGTERM"),
        (Ended(signal_name="SIGINT"), {"exit_code": 130}, 130, ""),
        (
            Ended(first_failure=RankFailure(1, 1)),
            {"exit_code": 1},
            1,
            "rank 1 ended with exit code 1",
        ),
        (
            Ended(first_failure=RankFailure(1, -9)),
            {"exit_code": None, "step": 12},
            1,
            "rank 1 was killed by SIGKILL, often because memory ran out after step 12; the same",
        ),
        (Ended(first_failure=RankFailure(0, -11)), {}, 1, "rank 0 was killed by SIGSEGV"),
        (Ended(first_failure=RankFailure(0, 7)), {}, 1, "rank 0 ended with exit code 7"),
        (Ended(error="ValueError: a"), {"exit_code": 0}, 1, "accelerate launch failed (ValueError"),
    ],
)
def test_the_exit_code_and_what_no_rank_has_explained(
    ended: Ended, status: dict[str, Any], code: int, told: str, tmp_path: Path, capsys: Capture
) -> None:
    said = Ended("a traceback\n", ended.first_failure, ended.signal_name, ended.error)
    for log in (tmp_path / "launch.log", None):
        assert run.conclude(said, status, log) == code
        shown = capsys.readouterr().err
        assert bool(shown) == bool(told)
        assert told in shown
        if told and log:  # nothing is lost: it is in the file that is named, or here
            assert str(tmp_path) in shown
        elif told:  # a signal is explanation enough
            assert shown.endswith("a traceback\n\n") is (ended.signal_name is None)


def test_a_launcher_that_fails_is_not_silent(capsys: Capture) -> None:
    """In a process of its own, because torch's launcher is meant to be a process's last task."""
    code = (
        "from launch.ranks import run_ranks; from launch.run import conclude; "
        "raise SystemExit(conclude(run_ranks(['--config_file', 'no.yaml', 'train.py']), {}, None))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: accelerate launch failed (")
    assert "no.yaml" in ended.stderr.splitlines()[0]
    assert ended.stderr.count("Traceback") == 1


CHILD = """\
import signal, time
signal.signal(signal.SIGINT, lambda *_: print("SIGINT", flush=True))
print("ready", flush=True)
time.sleep(1); time.sleep(60)
"""


def test_a_second_ctrl_c_reaches_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is torch's launcher's to pass on, which here does nothing."""
    monkeypatch.setattr(ranks, "SECOND_CTRL_C_AFTER_S", 0.0)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        with ranks._second_ctrl_c_reaches_ranks():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
            assert child.stdout.readline() == "SIGINT\n"
    finally:
        child.kill()
        child.communicate()
        signal.signal(signal.SIGINT, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_what_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PET_SHUTDOWN_TIMEOUT": "60"})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ranks._prepare_environment()
    finally:
        signal.signal(signal.SIGHUP, before)
    handled = os.environ["PET_SIGNALS_TO_HANDLE"].split(",")
    assert handled == ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"]
    assert os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] == os.environ["PET_SIGNALS_TO_HANDLE"]
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in os.environ  # the user's own choice stays
