"""What SLURM's partitions offer, and whether a job could ever start there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from launch.slurm_queue import run_slurm
from mmsa.errors import UserError
from mmsa.foundation.durations import seconds_of_limit


class Node(NamedTuple):
    """What a node offers to jobs."""

    cpus: int
    gpus: int


@dataclass
class Partition:
    """A partition as reported by `sinfo`; nodes that are down count, because they may return."""

    name: str
    limit: str  # as SLURM writes it: infinite, 4:00:00, 1-00:00:00
    is_default: bool
    nodes: dict[str, Node] = field(default_factory=dict)


class Shape(NamedTuple):
    """What a job requests: `cpus` and `gpus` per node, `time` in SLURM's format."""

    nodes: int
    cpus: int
    gpus: int
    time: str


def read_partitions() -> dict[str, Partition]:
    """Name -> partition, for all partitions of the cluster."""
    found: dict[str, Partition] = {}
    answer = run_slurm("sinfo", "--all", "--noheader", "--Node", "--format", "%P|%N|%c|%l|%G")
    for line in answer.splitlines():
        name, node, cpus, limit, gres = line.strip().split("|", maxsplit=4)
        is_default, name = name.endswith("*"), name.removesuffix("*")
        partition = found.setdefault(name, Partition(name, limit, is_default))
        if node and cpus.isdecimal():
            partition.nodes[node] = Node(int(cpus), gpus_of(gres))
    return found


def gpus_of(gres: str) -> int:
    """GPUs in a node's generic resources: 6 for `gpu:a100:4(S:0-1),gpu:v100:2,nvme:1`."""
    number = 0
    for resource in gres.split(","):
        kind, *rest = resource.partition("(")[0].split(":")
        if kind == "gpu" and rest and rest[-1].isdecimal():
            number += int(rest[-1])
    return number


def check_fits(partitions: Mapping[str, Partition], requested: str | None, shape: Shape) -> None:
    """Raise `UserError` for an unknown partition, or if `shape` fits in none of the requested ones.

    `requested` is as for sbatch: one name, or several separated by commas; None means the default
    partition.
    """
    if requested is None:
        names = [partition.name for partition in partitions.values() if partition.is_default]
    else:
        names = requested.split(",")
    for name in names:
        if name not in partitions:
            known = ", ".join(sorted(partitions)) or "none"
            raise UserError(
                f"SLURM has no partition '{name}'; it has: {known}. Choose one with --partition or "
                "with `partition` in the site file"
            )
    problems = [what_is_missing(partitions[name], shape) for name in names]
    if names and all(problems):
        raise UserError("; ".join(problems))


def what_is_missing(partition: Partition, shape: Shape) -> str:
    """Why a job of `shape` could never start in `partition`; "" if it can."""
    nodes = partition.nodes.values()
    fitting = sum(node.cpus >= shape.cpus and node.gpus >= shape.gpus for node in nodes)
    if fitting < shape.nodes:
        most = f"{max((node.cpus for node in nodes), default=0)} CPU(s)"
        wanted = f"{shape.cpus} CPU(s)"
        if shape.gpus:
            most += f" and {max((node.gpus for node in nodes), default=0)} GPU(s)"
            wanted += f" and {shape.gpus} GPU(s)"
        return (
            f"the job requests {shape.nodes} node(s) with {wanted} each, but partition "
            f"'{partition.name}' has {len(nodes)} node(s) with at most {most} each, {fitting} of "
            "them large enough; lower --nodes, --cpus-per-task or --gpus-per-node, or choose "
            "another --partition"
        )
    limit, wanted_s = seconds_of_limit(partition.limit), seconds_of_limit(shape.time)
    if limit is not None and wanted_s is not None and wanted_s > limit:
        return (
            f"the job requests {shape.time}, but partition '{partition.name}' ends jobs after "
            f"{partition.limit}; lower --time (the run resumes in further jobs), or choose another "
            "--partition"
        )
    return ""
