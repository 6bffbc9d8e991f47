"""Lengths of time as people and schedulers write them."""

from __future__ import annotations

import re
from typing import Any

# The forms of SLURM's --time except bare minutes: [days-][hours:]minutes:seconds.
_CLOCK = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")


def seconds_of(value: Any) -> Any:
    """Seconds of `90`, `1:30`, `01:00:00` or `1-12:00:00`; any other value is returned as it is."""
    found = _CLOCK.match(value) if isinstance(value, str) else None
    if found is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def seconds_of_limit(text: str) -> int | None:
    """Seconds of a limit as SLURM reads and writes it; None if it is not one (`infinite`, `soon`).

    As `seconds_of`, except for SLURM's short forms: `30` are minutes, `1-12` days and hours, and
    `1-12:30` days, hours and minutes (sbatch(1), --time).
    """
    if re.fullmatch(r"\d+", text):
        text = f"{text}:00"
    elif re.fullmatch(r"\d+-\d+", text):
        text = f"{text}:00:00"
    elif re.fullmatch(r"\d+-\d+:\d+", text):
        text = f"{text}:00"
    seconds = seconds_of(text)
    return None if isinstance(seconds, str) else int(seconds)
