"""Signals to this process: answered at once, agreed on later, and a second Ctrl-C ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmsa.errors import EXIT_INTERRUPTED
from mmsa.process import stop_request
from mmsa.process.stop_request import MAX_TIME, StopRequest

ROOT = Path(__file__).resolve().parent.parent.parent
GiveUp = list[tuple[str, int]]


def stops(given_up: GiveUp) -> StopRequest:
    return StopRequest(
        ["SIGTERM", "SIGINT", "SIGUSR1"],
        max_time_s=None,
        timeout_s=60.0,
        world_size=1,
        age_s=0.0,
        give_up=lambda message, code: given_up.append((message, code)),
    )


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What this process says, in the thread that hears signals too."""
    monkeypatch.setattr(stop_request.logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="mmsa")
    return caplog


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "SIGINT",
            "SIGINT: stopping after this step, then saving "
            "(Ctrl-C again ends at once, without saving)",
        ),
        ("SIGUSR1", "SIGUSR1: stopping after this step, then saving"),
    ],
)
def test_the_first_signal_is_answered_before_the_step_ends(
    name: str, answer: str, log: pytest.LogCaptureFixture
) -> None:
    with stops([]) as request:
        request.begin_loop(save_s=None)
        os.kill(os.getpid(), signal.Signals[name])
        wait_until(lambda: log.messages)  # nobody has called heard(), as within a long step
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: "SIGTERM" in request.heard())
        assert request.heard() == [one for one in request.reasons if one in ("SIGTERM", name)]
    assert log.messages == [answer]  # a further signal changes nothing, so it says nothing


def test_a_signal_during_a_save_says_what_it_waits_for(
    log: pytest.LogCaptureFixture,
) -> None:
    with stops([]) as request:
        request.begin_loop(save_s=None)
        with request.paused(saving=True):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: log.messages)
    assert log.messages == ["SIGTERM: stopping after this validation or save, then saving"]


def test_the_time_limit_reckons_with_a_save_that_ends_later() -> None:
    """In the background a save is not paused for; training says what it takes."""
    request = StopRequest(
        ["SIGTERM"], max_time_s=3600, timeout_s=20, world_size=1, age_s=0, give_up=lambda *_: None
    )
    request.begin_loop(save_s=None)
    with request.paused():
        pass
    request.expect_save(None)
    assert request.heard() == []
    request.expect_save(3000)  # half as much again is kept for it
    assert request.heard() == [MAX_TIME]


@pytest.mark.parametrize(
    ("later", "second", "ends"),
    [(0.0, "SIGINT", True), (60.0, "SIGINT", False), (0.0, "SIGTERM", False)],
    ids=["a second Ctrl-C", "one that arrives twice", "another signal"],
)
def test_a_second_ctrl_c_ends_at_once(
    later: float, second: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_request, "SECOND_CTRL_C_AFTER_S", later)
    given_up: GiveUp = []
    with stops(given_up) as request:
        request.begin_loop(save_s=None)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(request.heard)
        os.kill(os.getpid(), signal.Signals[second])
        os.kill(os.getpid(), signal.SIGUSR1)  # heard after it, so the thread is done with it
        wait_until(lambda: given_up if ends else "SIGUSR1" in request.heard())
    assert [code for _, code in given_up] == [EXIT_INTERRUPTED] * ends
    assert all("second Ctrl-C without saving" in message for message, _ in given_up)


def test_an_ending_command_is_not_ended_by_a_second_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop_request, "SECOND_CTRL_C_AFTER_S", 0.0)
    given_up: GiveUp = []
    with stops(given_up) as request:
        request.begin_loop(save_s=None)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(request.heard)
        request.ignore_from_now_on()
        os.kill(os.getpid(), signal.SIGINT)
    assert given_up == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_ctrl_c_before_a_run_begins_is_one_line_of_one_rank(rank: str) -> None:
    code = (
        "import time; from mmsa.process.stop_request import end_at_once_on_ctrl_c as end; end(); "
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "RANK": rank},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As at a terminal: where pytest itself runs in the background, children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    words = "interrupted before the run began; nothing was changed\n"
    assert (process.returncode, said) == (EXIT_INTERRUPTED, words if rank == "0" else "")


def test_a_signal_at_the_very_end_does_not_change_the_exit_code() -> None:
    code = (
        "import atexit, os, signal\n"
        "from mmsa.process.command import leave\n"
        "atexit.register(lambda: [os.kill(os.getpid(), getattr(signal, name)) for name in "
        "('SIGHUP', 'SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2')])\n"
        "leave(75)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 75
