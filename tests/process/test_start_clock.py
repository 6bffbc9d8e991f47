"""The line that says how long a start took."""

from __future__ import annotations

import logging

import pytest

from mmsa.process.start_clock import StartClock


def test_the_line_comes_with_the_first_batch_and_has_every_part(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Alone: commands that ran in this process before leave handlers on this logger.
    monkeypatch.setattr(logging.getLogger("mmsa"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("mmsa"), "propagate", False)
    times = iter([100.0, 102.5, 103.0, 103.0, 104.2])
    monkeypatch.setattr("mmsa.process.start_clock.time", lambda: next(times))
    start = StartClock()
    start.mark("imports")
    start.mark("model")
    batches = start.first_of(iter(["a", "b"]))
    with caplog.at_level(logging.INFO, logger="mmsa"):
        assert caplog.messages == []
        assert next(batches) == "a"
    expected = "start: 4.2 s to the first step (imports 2.5, model 0.5, other 0.0, first batch 1.2)"
    assert caplog.messages == [expected]
    assert list(batches) == ["b"]
    assert list(start.first_of(iter(["c"]))) == ["c"]  # of the next report of the same command
    assert caplog.messages == [expected]


def test_no_batch_is_no_first_step() -> None:
    assert list(StartClock().first_of(iter([]))) == []
