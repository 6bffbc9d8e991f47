"""Loader processes by the cores of a rank, and what would leave a GPU idle: arithmetic."""

from __future__ import annotations

import pytest

from mmsa.config import load_config
from mmsa.data.plan import batch_plan
from mmsa.engines import gpu_supply
from mmsa.engines.gpu_supply import loader_workers, supply_in_words, supply_warnings
from mmsa.process.runtime import World

ALONE = World()


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch) -> object:
    """Pretends a GPU and a number of cores of the machine."""

    def pretend(cores: int) -> None:
        monkeypatch.setattr(gpu_supply, "device_type", lambda: "cuda")
        monkeypatch.setattr(gpu_supply, "CORES_AT_START", cores)

    return pretend


def test_workers_are_as_given_and_by_default_as_before() -> None:
    assert load_config(None).data.num_workers == 2
    assert [loader_workers(number, ALONE) for number in (0, 5)] == [0, 5]
    assert loader_workers("auto", ALONE) == 2  # there is no GPU here, or there are few cores
    assert load_config(None, ["data.num_workers=auto"]).data.num_workers == "auto"


@pytest.mark.parametrize(
    ("cores", "ranks", "expected"), [(64, 8, 6), (96, 8, 10), (8, 8, 2), (64, 1, 12), (12, 2, 4)]
)
def test_auto_takes_the_cores_that_a_rank_leaves(
    gpu_with: object, cores: int, ranks: int, expected: int
) -> None:
    gpu_with(cores)  # type: ignore[operator]
    world = World(launched=True, world_size=ranks, local_world_size=ranks)
    assert loader_workers("auto", world) == expected


def test_what_leaves_a_gpu_idle_is_said_with_what_to_set(gpu_with: object) -> None:
    gpu_with(16)  # type: ignore[operator]
    world = World(launched=True, world_size=8, local_world_size=8)

    def warnings(*settings: str, world: World = world) -> list[str]:
        config = load_config(None, settings)
        plan = batch_plan(
            4096,
            global_batch_size=config.train.global_batch_size,
            micro_batch_size=config.train.micro_batch_size,
            world_size=world.world_size,
        )
        return supply_warnings(config, plan, world)

    few, small = warnings("train.global_batch_size=512", "data.num_workers=auto")
    assert few.startswith("this rank has 2 core(s) for its GPU; with fewer than 4")
    assert "train.micro_batch_size=64 computes the same global batch" in small
    assert warnings("train.global_batch_size=64", "data.num_workers=auto") == [few]
    (workers,) = warnings("train.global_batch_size=8", world=ALONE)
    assert workers.startswith("2 loader process(es) use few of the 16 cores")
    assert warnings("train.global_batch_size=8", "data.num_workers=auto", world=ALONE) == []
    said = supply_in_words(load_config(None, ["data.num_workers=auto"]), ALONE)
    assert said.startswith("16 core(s) and 12 loader process(es) for this GPU, about 22,800 sam")
