"""What every test has: real data where it is there, and a fresh Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from needs import need

# Before torch is loaded: two threads per process on two busy cores wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"  # the real data, beside the checkout


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data; tests that take it are skipped where it is not there."""
    need("shared", (SHARED_DATA / "mvsa-single" / "labelResultAll.txt").is_file())
    return SHARED_DATA


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state for the process; `main([...])` runs several times in one here."""
    yield
    import sys

    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
