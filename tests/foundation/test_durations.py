"""Lengths of time as people, schedulers and YAML write them."""

from __future__ import annotations

import pytest

from mmsa.config import load_config
from mmsa.errors import UserError
from mmsa.foundation.durations import seconds_of_limit


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90.0),
        ("2.5", 2.5),
        ("1:30", 90.0),
        ("01:30", 90.0),
        ("01:00:00", 3600.0),
        ("1:30:00", 5400.0),
        ("23:59:30", 86370.0),
        ("1-12:00:00", 129600.0),
        ("null", None),
    ],
)
def test_a_time_limit(written: str, seconds: float | None) -> None:
    config = load_config(None, [f"run.max_time={written}"])
    assert config.run.max_time == seconds


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("4:00:00", 14400),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("1-00:00:00", 86400),
        ("infinite", None),
        ("1-", None),
    ],
)
def test_a_limit_as_slurm_writes_it(written: str, seconds: int | None) -> None:
    assert seconds_of_limit(written) == seconds


@pytest.mark.parametrize("written", ["soon", "0", "-5", "2-4", "12h"])
def test_what_is_none(written: str) -> None:
    with pytest.raises(UserError, match="run.max_time"):
        load_config(None, [f"run.max_time={written}"])


def test_signals_are_known_by_name() -> None:
    config = load_config(None, ["run.stop_signals=[SIGUSR1, SIGTERM]"])
    assert config.run.stop_signals == ("SIGUSR1", "SIGTERM")
    with pytest.raises(UserError, match=r"run.stop_signals"):
        load_config(None, ["run.stop_signals=[SIGKILL]"])
