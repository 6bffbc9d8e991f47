"""The GPU benchmark goes its whole way on a machine without one, under every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.soak
def test_every_arm_of_the_tiny_form_is_measured(tmp_path: Path) -> None:
    found = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--json", str(found)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900)
    rows = json.loads(found.read_text())["rows"]
    assert {row["engine"] for row in rows} == {"ddp", "zero2", "zero3"}
    assert [row["failed"] for row in rows if "failed" in row] == []
    assert all(row["samples_per_s"] > 0 and row["tflops"] > 0 for row in rows)
