"""`COMMAND | head`: a command whose reader has gone ends without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DRY_RUN = ["study", "launch/studies/best.yaml", "--raw", ".", "--dry-run"]


@pytest.mark.parametrize(
    "words",
    [["launch", *DRY_RUN], ["shards", "protocols"], ["mmsa", "verify", "."]],
    ids=["launch", "shards", "mmsa"],
)
def test_a_reader_that_has_gone(words: list[str], tmp_path: Path) -> None:
    if words[0] == "mmsa":  # of a start that failed there is nothing to verify
        (tmp_path / "status.json").write_text('{"state": "failed"}')
        words = [*words[:-1], str(tmp_path)]
    ended = ended_with(unread(), [sys.executable, "-m", *words])
    assert ended.returncode == 141, ended.stderr
    assert ended.stderr == ""


def unread() -> int:
    """A pipe for writing whose reader has gone."""
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def ended_with(stdout: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `stdout` is closed then."""
    with os.fdopen(stdout, "wb") as file:
        return subprocess.run(
            words,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )


SCRIPT = """
import logging, sys, time
from pathlib import Path
from mmsa.process import runtime
from mmsa.process.command import run_command

def body(command):
    if sys.argv[1] == "prints":
        for number in range(3000):
            print("a line of a report", number)
    else:
        runtime.set_up_logging(command.world, Path(sys.argv[2]))
        for number in range(50):
            runtime.logger.info("step %d", number)

sys.exit(run_command(body))
"""


@pytest.mark.parametrize(
    ("what", "stdout", "code"), [("prints", "closed", 141), ("logs", "closed", 0)]
    + ([("logs", "full", 0)] if Path("/dev/full").exists() else []),
)  # fmt: skip
def test_a_run_goes_on_without_its_reader_and_a_report_ends(
    what: str, stdout: str, code: int, tmp_path: Path
) -> None:
    """As train.py and evaluate.py are: the lines of a run are in its log as well."""
    file = unread() if stdout == "closed" else os.open("/dev/full", os.O_WRONLY)
    log = tmp_path / "log.txt"
    ended = ended_with(file, [sys.executable, "-c", SCRIPT, what, str(log)])
    assert (ended.returncode, ended.stderr) == (code, "")
    if what == "logs":
        assert log.read_text().splitlines()[-1].endswith("step 49")


@pytest.mark.parametrize("closing", ["before", "after all was read"])
def test_whoever_needs_no_reader_ends_as_usual(closing: str) -> None:
    """`>&-`, and a reader that leaves when it has what it wants; a rank that prints nothing."""
    code = "import sys\nfrom mmsa.process.command import run_command\n"
    if closing == "before":
        code += "sys.exit(run_command(lambda command: print('nobody reads this')))"
        words = ["bash", "-c", '"$0" -c "$1" >&-', sys.executable, code]
    else:
        code += "sys.exit(run_command(lambda command: None))"
        words = [sys.executable, "-c", code]
    ended = ended_with(unread(), words)
    assert (ended.returncode, ended.stderr) == (0, "")
