"""What a wheel holds: all that the installed commands read, and the commands themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mmsa", "shards", "launch")
SCRIPTS = ("train.py", "evaluate.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    copy = tmp_path_factory.mktemp("project")  # building writes next to the sources
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    code = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(copy / "dist" / built.stdout.split()[-1]) as file:
        yield file


def test_it_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {"launch/runs/demo.yaml", "launch/slurm/functions.sh"} <= expected
    assert expected.union(SCRIPTS) - set(wheel.namelist()) == set()


def test_its_commands_are_functions(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    lines = [line for line in wheel.read(name).decode().splitlines() if " = " in line]
    commands = dict(line.split(" = ") for line in lines)
    assert sorted(commands) == [
        *["mmsa", "mmsa-evaluate", "mmsa-launch", "mmsa-shards", "mmsa-train"]
    ]
    for place in commands.values():
        module, function = place.split(":")
        source = wheel.read(f"{module.replace('.', '/')}.py").decode()
        assert f"\ndef {function}(argv: Sequence[str] | None = None) -> int:" in source
