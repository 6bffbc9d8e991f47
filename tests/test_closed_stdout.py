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
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as stdout:
        ended = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 141, ended.stderr
    assert ended.stderr == ""
