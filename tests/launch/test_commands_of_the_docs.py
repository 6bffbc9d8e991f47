"""The commands that README and docs/slurm.md print can run: files, settings, batch arithmetic."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.__main__ import build_parser
from launch.checks import load_for_shape
from launch.site import Site, load_site
from mmsa.config import Config, load_config
from mmsa.data.plan import batch_plan
from mmsa.training.setup import training_checks

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(beginning: str) -> list[list[str]]:
    """The words of every command in a code block of a page that begins with these words."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [shlex.split(line, comments=True) for line in lines if beginning in line]
    return found


def check_batches(config: Config, world_size: int) -> None:
    batch_plan(
        100_000,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        world_size=world_size,
        drop_last=True,
    )


SUBMITTED = [words for words in commands("launch submit train") if "CONFIG" not in words]
LAUNCHED = [words for words in commands("accelerate launch") if "train.py" in words]
LAUNCHED = [words for words in LAUNCHED if "--config" in words and "CONFIG" not in words]


@pytest.mark.parametrize("words", SUBMITTED, ids=" ".join)
def test_a_submission_divides_its_batches(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    at = words.index("--")
    arguments = build_parser().parse_args(words[3:at])
    shape = {key: getattr(arguments, key, None) for key in Site.model_fields}
    site = load_site(None, **{key: value for key, value in shape.items() if value})
    file, *overrides = words[at + 1 :]
    config = load_for_shape(file, overrides, site)
    check_batches(config, int(config.launch.world_size))


@pytest.mark.parametrize("words", LAUNCHED, ids=" ".join)
def test_a_launch_divides_its_batches(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    processes = words[words.index("--num_processes") + 1] if "--num_processes" in words else "1"
    assert Path(words[words.index("--config_file") + 1]).is_file()
    overrides = [word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)]
    file = words[words.index("--config") + 1]
    check_batches(load_config(file, overrides, checks=training_checks()), int(processes))


def test_the_commands_are_found() -> None:
    assert len(SUBMITTED) >= 2
    assert len(LAUNCHED) >= 1
