"""Whether a job fits in a partition: a table. `sinfo` itself is read in tests/slurm."""

from __future__ import annotations

import pytest

from launch.slurm_partitions import Node, Partition, Shape, check_fits, gpus_of, what_is_missing
from mmsa.errors import UserError

MAIN = Partition(
    "main",
    "1-00:00:00",
    is_default=True,
    nodes={"a": Node(8, 0), "b": Node(32, 4), "c": Node(32, 4)},
)
SMALL = Partition("small", "30:00", is_default=False, nodes={"a": Node(8, 0)})


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0-1),gpu:v100:2,nvme:1", 6),
        ("craynetwork:4", 0),
    ],
)
def test_the_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert gpus_of(gres) == gpus


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(3, 8, 0, "4:00:00"), ""),
        (Shape(2, 32, 4, "1-0"), ""),
        (Shape(2, 32, 4, "whatever"), ""),  # sbatch will report it
        (Shape(4, 8, 0, "4:00:00"), "requests 4 node(s) with 8 CPU(s) each, but partition 'main' "),
        (Shape(3, 8, 4, "10"), "has 3 node(s) with at most 32 CPU(s) and 4 GPU(s) each, 2 of them"),
        (Shape(1, 33, 0, "10"), "at most 32 CPU(s) each, 0 of them large enough; lower --nodes"),
        (Shape(1, 8, 0, "1-00:00:01"), "'main' ends jobs after 1-00:00:00; lower --time"),
    ],
)
def test_what_does_not_fit(shape: Shape, words: str) -> None:
    found = what_is_missing(MAIN, shape)
    assert words in found
    assert bool(words) == bool(found)


def test_one_of_several_partitions_is_enough() -> None:
    known = {"main": MAIN, "small": SMALL}
    check_fits(known, "small,main", Shape(2, 8, 0, "1:00:00"))
    check_fits(known, None, Shape(2, 8, 0, "1:00:00"))  # the default one
    check_fits(
        {"small": SMALL}, None, Shape(2, 8, 0, "1:00:00")
    )  # there is none: sbatch will report it
    for requested, words in (
        ("small", "'small' has 1 node"),
        ("main,gpus", "SLURM has no partition 'gpus'; it has: main, small"),
    ):
        with pytest.raises(UserError, match=words):
            check_fits(known, requested, Shape(2, 8, 0, "1:00:00"))
    with pytest.raises(UserError, match=r"'small' has 1 node.*; .*'main' has 3 node"):
        check_fits(known, "small,main", Shape(4, 8, 0, "10"))
