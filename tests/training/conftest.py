"""An Accelerator of one process on the CPU, for the tests of collective acts."""

from __future__ import annotations

import pytest
from accelerate import Accelerator


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="no")
