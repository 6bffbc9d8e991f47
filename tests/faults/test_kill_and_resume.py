"""kill -9 at random moments, over and over: the run ends with the bytes of one that was not killed.

Each relaunch starts at the newest whole checkpoint, and a kill costs no more than the steps between
two of them. Dropout and augmentation are on.
"""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from harness import status
from launches import Launch, checkpoint_steps, launcher

SAVE_EVERY = 10
STEPS = 40
SETTINGS = [
    *[f"train.max_steps={STEPS}", "train.epochs=9", f"train.checkpoint_every_steps={SAVE_EVERY}"],
    *["train.validate_every_steps=25", "data.num_workers=1", "train.micro_batch_size=4"],
]


class Killer:
    """Kills one launch at a moment of its own choice. Alike for the same seed, but for time."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.kills: list[str] = []

    def kill(self, launch: Launch) -> None:
        """Wait for a moment and kill a rank or the whole tree; the launch has ended afterwards."""
        during_write = len(self.kills) % 2 == 0
        one_rank = self._random.random() < 0.5
        first = checkpoint_steps(launch.run_dir)[-1:]
        if during_write:
            # The directory that a checkpoint is written in, before it gets its name.
            launch.wait_until(lambda: any(launch.run_dir.glob("checkpoints/.step-*.tmp")))
        else:
            steps = self._random.randint(1, SAVE_EVERY + 5)
            launch.wait_until(lambda: len(launch.steps()) >= steps or is_over(launch))
        victim = f"{'a rank' if one_rank else 'all'}, {'saving' if during_write else 'anywhere'}"
        if one_rank:
            launch.look()
            self._random.choice(launch.ranks()).kill()
            if launch.wait() != 0:
                assert status(launch.run_dir)["state"] in ("failed", "running")
        else:
            launch.kill()
        self.kills.append(f"{victim}, from {first} at {launch.steps()[-1:]}")


def is_over(launch: Launch) -> bool:
    return status(launch.run_dir)["state"] == "done"


def run_killed(
    run_dir: Path, settings: list[str], by: list[str], *, kills: int, seed: int
) -> list[str]:
    """Launch until the run is done, killing the first `kills` launches; returns what was killed."""
    killer, ran = Killer(seed), 0
    while True:
        whole = checkpoint_steps(run_dir)
        launch = Launch(run_dir, *settings, by=by)
        if len(killer.kills) < kills:
            killer.kill(launch)
        else:
            assert launch.wait() == 0, launch.output()
        log = launch.own_log()
        resumed = re.findall(r"resumed from (\S+) at step (\d+)", log)
        steps = launch.steps()
        assert all(after == before + 1 for before, after in pairwise(steps))
        if whole:
            assert resumed == [(f"{run_dir}/checkpoints/step-{whole[-1]:08d}", str(whole[-1]))], (
                log,
                killer.kills,
            )
        if steps:
            assert steps[0] == (whole[-1] if whole else 0) + 1
        ran += len(steps)
        if len(killer.kills) == kills and is_over(launch):
            break
    assert ran <= STEPS + kills * SAVE_EVERY
    return killer.kills


def final_bytes(run_dir: Path) -> bytes:
    return (run_dir / f"checkpoints/step-{STEPS:08d}/export/model.safetensors").read_bytes()


@pytest.mark.parametrize(("world", "kills"), [(2, 2), (4, 1)])
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_a_killed_run_cannot_be_told_from_one_that_was_not(
    shards: Path, tmp_path: Path, engine: str, world: int, kills: int
) -> None:
    settings = [*SETTINGS, f"data.shards={shards}"]
    settings += [f"launch.engine={engine}", f"launch.world_size={world}"]
    by = launcher(engine, world)
    never = Launch(tmp_path / "never", *settings, by=by)
    assert never.wait() == 0, never.output()
    seed = sum(map(ord, engine)) + world
    run_killed(tmp_path / "killed", settings, by, kills=kills, seed=seed)
    assert final_bytes(tmp_path / "killed") == final_bytes(never.run_dir)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_twenty_kills(shards: Path, tmp_path: Path, engine: str, world: int) -> None:
    settings = [*SETTINGS, f"data.shards={shards}"]
    settings += [f"launch.engine={engine}", f"launch.world_size={world}"]
    by = launcher(engine, world)
    never = Launch(tmp_path / "never", *settings, by=by)
    assert never.wait() == 0, never.output()
    for line in run_killed(tmp_path / "killed", settings, by, kills=20, seed=world):
        print(line)
    assert final_bytes(tmp_path / "killed") == final_bytes(never.run_dir)
