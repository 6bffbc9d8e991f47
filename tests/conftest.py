"""Fixtures for what tests need from the machine, and cleanup of process-wide state.

`MMSA_REQUIRE=shared,...` makes tests fail instead of skip when something is missing; CI sets it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# A busy machine fails no test.
hypothesis.settings.register_profile(
    "no_times", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("no_times")

# Set before torch is imported: two threads per process on two busy cores wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"  # the real data, next to the checkout


def need(name: str, present: bool) -> None:
    """Skip the test if `name` is missing; fail it if MMSA_REQUIRE lists `name`."""
    if present:
        return
    if name in os.environ.get("MMSA_REQUIRE", "").split(","):
        pytest.fail(f"MMSA_REQUIRE lists '{name}', which this machine does not have")
    pytest.skip(f"this machine does not have: {name}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data; tests that use it are skipped if it is missing."""
    need("shared", (SHARED_DATA / "mvsa-single" / "labelResultAll.txt").is_file())
    return SHARED_DATA


@pytest.fixture
def package() -> Callable[[str], None]:
    """Skips where an optional Python package is missing; `package("wandb")`."""
    return lambda name: need(name, importlib.util.find_spec(name) is not None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size (such as "8m"); skips if mounting is not possible."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        need("tmpfs", shutil.which("mount") is not None and not subprocess.call(command))
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def browser() -> str:
    """A headless Chromium; tests that use it are skipped if there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    need("browser", found is not None)
    return str(found)


@pytest.fixture(scope="session")
def slurm() -> None:
    """SLURM's daemons, and root, which is needed to give processes separate host names."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
    there = all(shutil.which(name, path=path) for name in programs)
    need("slurm", os.geteuid() == 0 and there)


@pytest.fixture(autouse=True)
def fresh_accelerate_state() -> Iterator[None]:
    """Reset Accelerate's process-wide state, because tests call `main([...])` repeatedly."""
    yield
    import sys

    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
