"""Nodes that did not answer, versions that differ, and the limits of each node."""

from __future__ import annotations

from collections.abc import Mapping

from launch.doctor.findings.finding import ERROR, WARNING, ByNode, Finding, by_value, size

_OPEN_FILES = 4096  # mmsa raises its own limit to this, as far as the hard limit allows
_SHM_BYTES = 1 << 30  # Docker gives 64 MB unless told otherwise


def silent(step: str, problems: Mapping[str, str]) -> list[Finding]:
    """Nodes that have no answer to a step, or whose step failed."""
    return [
        Finding(
            ERROR,
            "nodes",
            tuple(nodes),
            f"no result of the step {step}",
            problem,
            "an answer in time from every node",
            "log in to the node and look there (dmesg, its file systems, `nvidia-smi`), or exclude "
            f"it: --sbatch exclude={','.join(nodes)}",
        )
        for problem, nodes in by_value(problems).items()
    ]


def versions(facts: ByNode) -> list[Finding]:
    """Everything whose version is not the same on all nodes."""
    found = []
    names = dict.fromkeys(name for one in facts.values() for name in one["versions"])
    for name in names:
        groups = by_value({node: one["versions"].get(name) for node, one in facts.items()})
        if len(groups) > 1:
            (expected, _), *others = groups.items()
            found.append(
                Finding(
                    ERROR,
                    "versions",
                    tuple(node for _, nodes in others for node in nodes),
                    f"{name} is not the same on all nodes",
                    "; ".join(f"{value} on {', '.join(nodes)}" for value, nodes in groups.items()),
                    f"one version everywhere, such as {expected}",
                    "use one environment for all nodes: a shared directory or a container "
                    "(`setup` and `container` in launch/site.yaml)",
                )
            )
    return found


def limits(facts: ByNode) -> list[Finding]:
    """Open files, locked memory, shared memory, and a machine that is busy already."""
    found = []
    for node, one in facts.items():
        hard = one["open_files"][1]
        if 0 <= hard < _OPEN_FILES:
            found.append(
                _limit(
                    node,
                    "few files may be open",
                    f"{hard} (hard limit of `ulimit -n`)",
                    f"at least {_OPEN_FILES}",
                    "raise it in /etc/security/limits.conf, or in slurmd's service (LimitNOFILE)",
                )
            )
        if one["infiniband"] and one["locked_memory"] >= 0:
            found.append(
                _limit(
                    node,
                    "memory that InfiniBand locks is limited",
                    f"{size(one['locked_memory'])} (`ulimit -l`)",
                    "unlimited",
                    "set LimitMEMLOCK=infinity in slurmd's service; without it NCCL fails",
                )
            )
        if one["shm_free_bytes"] < _SHM_BYTES:
            found.append(
                _limit(
                    node,
                    "little shared memory is free",
                    f"{size(one['shm_free_bytes'])} of {size(one['shm_bytes'])} in /dev/shm",
                    f"at least {size(_SHM_BYTES)}",
                    "remove what other jobs left in /dev/shm; in a container: --shm-size=8g",
                )
            )
        found += _interfaces(node, one)
    return found


def _limit(node: str, what: str, found: str, expected: str, do: str) -> Finding:
    return Finding(WARNING, "limits", (node,), what, found, expected, do)


def _interfaces(node: str, facts: dict[str, object]) -> list[Finding]:
    """Interfaces that variables name and the node does not have."""
    variables, there = facts["variables"], facts["interfaces"]
    assert isinstance(variables, dict)
    assert isinstance(there, dict)
    found = []
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        value = str(variables.get(variable, ""))
        if not value or value.startswith("^"):
            continue
        exact = value.startswith("=") or variable.startswith("GLOO")
        wanted = value.lstrip("=").split(",")
        matches = [
            name
            for name, state in there.items()
            if state["up"] and any(name == one if exact else name.startswith(one) for one in wanted)
        ]
        if not matches:
            found.append(
                Finding(
                    ERROR,
                    "network",
                    (node,),
                    f"{variable}={value} names no interface that is up",
                    f"up are {', '.join(name for name, one in there.items() if one['up'])}",
                    f"an interface {value}",
                    f"correct {variable} in `setup` of launch/site.yaml, or leave it out",
                )
            )
    return found
