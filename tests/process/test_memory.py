"""A process that computes keeps what it frees: the next step maps no page again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Blocks of 48 MiB, more than glibc ever keeps in its default way, as a step's activations are.
STEPS = """
import resource, sys, torch
torch.set_num_threads(1)
from mmsa.process.memory import keep_freed_memory

keep_freed_memory(for_steps=sys.argv[1] == "steps")
keep_freed_memory()  # as a loader that is created later calls it


def step():
    kept = [torch.ones(12 << 20) for _ in range(8)]
    return sum(float(each[0]) for each in kept)


for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kind: str, **environment: str) -> int:
    ended = subprocess.run(
        [sys.executable, "-c", STEPS, kind],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return int(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_pages_of_the_step_before() -> None:
    pages_of_a_step = 8 * (48 << 20) // 4096
    assert page_faults("steps") < pages_of_a_step / 20
    assert page_faults("batches") > pages_of_a_step  # what it was: mapped again in each step


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_users_own_setting_wins() -> None:
    assert page_faults("steps", MALLOC_MMAP_MAX_="65536") > 8 * (48 << 20) // 4096
