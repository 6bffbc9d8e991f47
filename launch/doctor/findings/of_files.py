"""Disks, shards and weights."""

from __future__ import annotations

from launch.doctor.findings.finding import ERROR, WARNING, ByNode, Finding, Level, by_value, size

_FREE_BYTES = 10e9  # a few checkpoints of a base model
_TEMPORARY_BYTES = 1e9
_WRITE_BYTES_PER_S = 50e6


def storage(facts: ByNode) -> list[Finding]:
    """What is full, slow, unreadable, or not the same on all nodes."""
    found = []
    for node, one in facts.items():
        if "run_dir" in one:
            found += _run_dir(node, one["run_dir"])
        place = one["temporary"]
        if place["free_bytes"] < _TEMPORARY_BYTES:
            found.append(
                _disk(
                    WARNING,
                    node,
                    "the directory for temporary files is nearly full",
                    f"{size(place['free_bytes'])} free in {place['path']}",
                    f"{size(_TEMPORARY_BYTES)}",
                    "free space there, or set TMPDIR in `setup` of launch/site.yaml",
                )
            )
    return found + _shards(facts)


def _run_dir(node: str, place: dict[str, object]) -> list[Finding]:
    free, speed = float(str(place["free_bytes"])), place.get("write_bytes_per_s")
    if "error" in place:
        what, found = "the run directory cannot be written", str(place["error"])
        return [
            _disk(
                ERROR,
                node,
                what,
                f"{found} ({size(free)} free)",
                "64 MiB can be written",
                "free space or quota (`df -h`, `quota`), or choose another run.dir",
            )
        ]
    if free < _FREE_BYTES:
        return [
            _disk(
                WARNING,
                node,
                "little space for checkpoints",
                f"{size(free)} free in {place['path']}",
                f"{size(_FREE_BYTES)}",
                "free space, or lower train.keep_checkpoints; a run says first what it needs",
            )
        ]
    if isinstance(speed, float) and speed < _WRITE_BYTES_PER_S:
        return [
            _disk(
                WARNING,
                node,
                "writing is slow, and all ranks wait while a checkpoint is saved",
                f"{size(speed)}/s in {place['path']}",
                f"{size(_WRITE_BYTES_PER_S)}/s",
                "put run.dir on a faster file system, or save less often",
            )
        ]
    return []


def _shards(facts: ByNode) -> list[Finding]:
    shards = {node: one["shards"] for node, one in facts.items() if "shards" in one}
    found = [
        _data(
            (node,),
            "the shards cannot be read",
            one["error"],
            "the same packed set on every node",
            "mount the file system there or copy the shards to the same path; `python -m shards "
            "verify OUT` reads every byte",
        )
        for node, one in shards.items()
        if "error" in one
    ]
    groups = by_value({n: one["digest"][:12] for n, one in shards.items() if "digest" in one})
    if len(groups) > 1:
        others = [node for nodes in list(groups.values())[1:] for node in nodes]
        found.append(
            _data(
                tuple(others),
                "nodes have different shards",
                "; ".join(f"{digest} on {', '.join(nodes)}" for digest, nodes in groups.items()),
                "one manifest everywhere",
                "copy the same packed set to all nodes",
            )
        )
    return found


def weights(facts: ByNode) -> list[Finding]:
    """What jobs without a network would not find."""
    missing = {
        node: ", ".join(f"{one['what']}: {one['source']}" for one in facts[node]["missing"])
        for node in facts
        if facts[node]["missing"]
    }
    return [
        Finding(
            ERROR,
            "weights",
            tuple(nodes),
            "weights or tokenizers are missing",
            what,
            "everything that the configuration names, without a network",
            "run `python -m launch prefetch CONFIG --cache DIR` where there is one, with a "
            f"DIR that all nodes see. {facts[nodes[0]]['missing'][0]['problem']:.300}",
        )
        for what, nodes in by_value(missing).items()
    ]


def _disk(level: Level, node: str, what: str, found: str, expected: str, do: str) -> Finding:
    return Finding(level, "disks", (node,), what, found, expected, do)


def _data(nodes: tuple[str, ...], what: str, found: str, expected: str, do: str) -> Finding:
    return Finding(ERROR, "shards", nodes, what, found, expected, do)
