"""What SLURM's partitions offer, and whether a job can ever run there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.slurm_queue import ask
from mmsa.durations import seconds_of_limit
from mmsa.errors import UserError


class Node(NamedTuple):
    """What a job can have of one node."""

    cpus: int
    gpus: int


@dataclass
class Partition:
    """A partition as `sinfo` tells it; nodes that are down just now count, for they come back."""

    name: str
    limit: str  # as SLURM writes it: infinite, 4:00:00, 1-00:00:00
    is_default: bool
    nodes: dict[str, Node] = field(default_factory=dict)


class Shape(NamedTuple):
    """What a job asks for, on each of its nodes; `time` as SLURM reads it."""

    nodes: int
    cpus: int
    gpus: int
    time: str


def read_partitions() -> dict[str, Partition]:
    """Name -> partition, of all that SLURM knows."""
    found: dict[str, Partition] = {}
    answer = ask("sinfo", "--all", "--noheader", "--Node", "--format", "%P|%N|%c|%l|%G")
    for line in answer.splitlines():
        name, node, cpus, limit, gres = line.strip().split("|", maxsplit=4)
        is_default, name = name.endswith("*"), name.removesuffix("*")
        partition = found.setdefault(name, Partition(name, limit, is_default))
        if node and cpus.isdecimal():
            partition.nodes[node] = Node(int(cpus), gpus_of(gres))
    return found


def gpus_of(gres: str) -> int:
    """The GPUs of a node by its generic resources: 6 for `gpu:a100:4(S:0-1),gpu:v100:2,nvme:1`."""
    number = 0
    for resource in gres.split(","):
        kind, *rest = resource.partition("(")[0].split(":")
        if kind == "gpu" and rest and rest[-1].isdecimal():
            number += int(rest[-1])
    return number


def check_fits(partitions: Mapping[str, Partition], asked_for: str | None, shape: Shape) -> None:
    """Raise `UserError` for a partition that SLURM does not know, or none in which `shape` fits.

    `asked_for` is sbatch's: a name or several with commas; None takes the default partition.
    """
    if asked_for is None:
        names = [one.name for one in partitions.values() if one.is_default]
    else:
        names = asked_for.split(",")
    for name in names:
        if name not in partitions:
            known = ", ".join(sorted(partitions)) or "none"
            raise UserError(
                f"SLURM knows no partition '{name}'; it knows: {known}. Give one with --partition, "
                "or as `partition` in the site's file"
            )
    problems = [what_is_missing(partitions[name], shape) for name in names]
    if names and all(problems):
        raise UserError("; ".join(problems))


def what_is_missing(partition: Partition, shape: Shape) -> str:
    """In words, why a job of `shape` could never start in `partition`; empty where it can."""
    nodes = partition.nodes.values()
    fitting = sum(node.cpus >= shape.cpus and node.gpus >= shape.gpus for node in nodes)
    if fitting < shape.nodes:
        most = f"{max((node.cpus for node in nodes), default=0)} CPU(s)"
        wanted = f"{shape.cpus} CPU(s)"
        if shape.gpus:
            most += f" and {max((node.gpus for node in nodes), default=0)} GPU(s)"
            wanted += f" and {shape.gpus} GPU(s)"
        return (
            f"the job asks for {shape.nodes} node(s) with {wanted} each, and partition "
            f"'{partition.name}' has {len(nodes)} node(s) with at most {most} each, {fitting} of "
            "them large enough; lower --nodes, --cpus-per-task or --gpus-per-node, or give "
            "another --partition"
        )
    limit, wanted_s = seconds_of_limit(partition.limit), seconds_of_limit(shape.time)
    if limit is not None and wanted_s is not None and wanted_s > limit:
        return (
            f"the job asks for {shape.time}, and partition '{partition.name}' ends jobs after "
            f"{partition.limit}; lower --time (the run goes on in further jobs), or give another "
            "--partition"
        )
    return ""
