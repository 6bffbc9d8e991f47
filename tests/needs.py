"""What tests need from the machine.

`MMSA_REQUIRE=shared,slurm,...` turns the skip for want of a thing into a failure: CI sets it.
"""

from __future__ import annotations

import os

import pytest


def need(name: str, present: bool) -> None:
    """Skip the test where `name` is missing; fail it where MMSA_REQUIRE names it."""
    if present:
        return
    if name in os.environ.get("MMSA_REQUIRE", "").split(","):
        pytest.fail(f"MMSA_REQUIRE names '{name}', which this machine does not have")
    pytest.skip(f"this machine does not have: {name}")
