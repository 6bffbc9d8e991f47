"""kill -9 at random moments, repeatedly: the run ends with the bytes of one that was not killed.

Each relaunch starts at the newest whole checkpoint, and a kill costs no more than the steps between
two of them; twice as many where a thread writes them while training continues. Dropout (also of
modalities) and augmentation are on.
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
SETTINGS = [
    *["train.epochs=99", f"train.checkpoint_every_steps={SAVE_EVERY}"],
    *["train.validate_every_steps=25", "data.modality_dropout={text: 0.2, image: 0.2}"],
]
IN_BACKGROUND = "train.checkpoint_in_background=true"


class Killer:
    """Kills launches at random moments. The same seed makes the same choices, except for timing."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.kills: list[str] = []

    def kill(self, launch: Launch) -> None:
        """At a random moment kill a rank or the whole tree, then wait for the launch to end."""
        during_write = len(self.kills) % 2 == 0
        one_rank = self._random.random() < 0.5
        first = checkpoint_steps(launch.run_dir)[-1:]
        if during_write:
            # The temporary directory in which a checkpoint is written.
            if self._random.random() < 0.5:
                launch.wait_until(lambda: checkpoint_steps(launch.run_dir)[-1:] != first)
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
    run_dir: Path, settings: list[str], by: list[str], *, steps: int, kills: int, seed: int
) -> list[str]:
    """Launch until the run is done, killing the first `kills` launches; returns a line per kill."""
    settings = [*settings, f"train.max_steps={steps}"]
    killer, ran = Killer(seed), 0
    while True:
        whole = checkpoint_steps(run_dir)
        launch = Launch(run_dir, *settings, by=by, fork=True)
        if len(killer.kills) < kills:
            killer.kill(launch)
        else:
            assert launch.wait() == 0, launch.output()
        log = launch.own_log()
        resumed = re.findall(r"resumed from (\S+) at step (\d+)", log)
        logged = launch.steps()
        assert all(after == before + 1 for before, after in pairwise(logged))
        if whole:
            assert resumed == [(f"{run_dir}/checkpoints/step-{whole[-1]:08d}", str(whole[-1]))], (
                log,
                killer.kills,
            )
        if logged:
            assert logged[0] == (whole[-1] if whole else 0) + 1
        ran += len(logged)
        if len(killer.kills) == kills and is_over(launch):
            break
    lost = SAVE_EVERY * (2 if IN_BACKGROUND in settings else 1)
    assert ran <= steps + kills * lost
    return killer.kills


def check(
    shards: Path, directory: Path, engine: str, world: int, *, steps: int, kills: int
) -> list[str]:
    """Train once without and once with kills: the final checkpoints have the same bytes."""
    settings = [*SETTINGS, f"data.shards={shards}"]
    settings += [f"launch.engine={engine}", f"launch.world_size={world}"]
    if (engine, world) == ("ddp", 2):
        settings += ["data.num_workers=1", IN_BACKGROUND]
    by = launcher(engine, world)
    never = Launch(directory / "never", *settings, f"train.max_steps={steps}", by=by, fork=True)
    assert never.wait() == 0, never.output()
    killed = directory / "killed"
    seed = sum(map(ord, engine)) + world
    victims = run_killed(killed, settings, by, steps=steps, kills=kills, seed=seed)
    last = Path("checkpoints") / f"step-{steps:08d}"
    for name in ("export/model.safetensors", "optimizer.safetensors"):
        assert (killed / last / name).read_bytes() == (never.run_dir / last / name).read_bytes()
    return victims


@pytest.mark.timeout(900)  # up to four launches
@pytest.mark.parametrize(
    ("engine", "world", "kills"),
    [
        *[("ddp", 2, 2), ("ddp", 4, 1)],
        # ZeRO-1 saves and resumes by the code of ZeRO-2.
        pytest.param("zero1", 2, 1, marks=pytest.mark.soak),
        *[("zero2", 2, 1), ("zero3", 2, 1)],
        pytest.param("zero3", 4, 1, marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(
    shards: Path, tmp_path: Path, engine: str, world: int, kills: int
) -> None:
    check(shards, tmp_path, engine, world, steps=40, kills=kills)


@pytest.mark.soak
@pytest.mark.parametrize(("world", "kills"), [(2, 20), (4, 8)])
@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2", "zero3"])
def test_twenty_kills(shards: Path, tmp_path: Path, engine: str, world: int, kills: int) -> None:
    for victim in check(shards, tmp_path, engine, world, steps=15 * kills, kills=kills):
        print(victim)
