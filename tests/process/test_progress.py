"""How far a long command is, in a log."""

from __future__ import annotations

import io
import sys

import pytest

from mmsa.process import runtime
from mmsa.process.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; the test moves it."""
    now = [0.0]
    monkeypatch.setattr("mmsa.process.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(total=100, what="validating", quiet=False, unit="batches") as told:
        for _ in range(100):
            clock[0] += 0.25
            told.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "validating: 40 of 100, 4 batches/s, 0:15 min left",
        "validating: 80 of 100, 4 batches/s, 0:05 min left",
    ]


def test_slow_work_has_a_rate_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10, what="evaluating", quiet=False, unit="batches") as told:
        clock[0] += 20.0
        told.advance()
    assert capsys.readouterr().err == "evaluating: 1 of 10, 0.05 batches/s, 3:00 min left\n"


def test_quiet_tells_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(total=10, what="evaluating", quiet=True) as told:
        clock[0] += 20.0
        told.advance()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=10, what="evaluating", quiet=False, unit="batches") as told:
        told.advance(10)
    assert "evaluating:   0%" in terminal.getvalue()
    assert "?batches/s" in terminal.getvalue()


def test_a_line_of_the_log_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(runtime.logger, "handlers", [])
    runtime.set_up_logging(runtime.world_from_environment(), None)
    with Progress(total=10, what="training", quiet=False, unit="steps"):
        runtime.logger.info("start: 9.4 s")
    runtime.logger.info("done")
    before, line, after = terminal.getvalue().partition("start: 9.4 s\n")
    assert line
    assert before.endswith("\r")  # the bar was wiped away
    assert "training:   0%" in before
    assert "training:   0%" in after
    assert after.endswith("\rdone\n")
