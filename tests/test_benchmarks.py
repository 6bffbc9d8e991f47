"""`make bench` goes its whole way: each of its commands, as the Makefile has them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCH = re.search(r"^bench:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
assert BENCH is not None
COMMANDS = [line.strip().removeprefix("$(BIN)/python ") for line in BENCH[1].splitlines()]


def test_every_command_is_a_benchmark() -> None:
    names = [re.match(r"-m benchmarks\.(\w+)", command) for command in COMMANDS]
    assert len(names) >= 9
    assert all(name and (ROOT / "benchmarks" / f"{name[1]}.py").is_file() for name in names)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_ends_well(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, *shlex.split(command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
