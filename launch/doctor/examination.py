"""The order of the steps, and which nodes take part in which: a problem that is known is said once.

A node that has not answered takes part in nothing further; a collective runs only between nodes
that reach each other, because it would hang and say less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from launch.doctor.findings import forecast as forecasts
from launch.doctor.findings import of_devices, of_files, of_network, of_nodes
from launch.doctor.node import Request
from launch.doctor.nodes import Nodes
from launch.doctor.report import Examination

# Seconds that a step may take on a node: imports from a slow file system included.
_TIMEOUTS_S = {
    "facts": 60.0,
    "tcp": 60.0,
    "storage": 120.0,
    "weights": 180.0,
    "compute": 180.0,
    "collectives": 180.0,
    "forecast": 300.0,
}


class Examiner:
    """Examines nodes; `examine` is called once."""

    def __init__(
        self, nodes: Nodes, request: Request, *, gpus: int, timeout_s: float | None
    ) -> None:
        self._nodes, self._request, self._gpus = nodes, request, gpus
        self._timeout_s = timeout_s
        self._answering = list(nodes.names)
        self._one = Examination(nodes.names)

    def examine(self) -> Examination:
        """Run all steps that make sense."""
        one, findings = self._one, self._one.findings
        facts = self._step("facts")
        if not facts:
            return one
        head = self._answering[0]
        findings += of_nodes.versions(facts)
        findings += of_nodes.limits(facts)
        findings += of_network.names(facts)
        findings += of_network.port(facts, head, self._request["port"])
        connected = self._connect(facts)
        storage = self._step("storage")
        findings += of_files.storage(storage)
        words, weights_missing = self._request["words"], False
        if words:
            weights = self._step("weights")
            findings += of_files.weights(weights)
            weights_missing = bool(weights.get(head, {}).get("missing"))
        compute = self._step("compute")
        findings += of_devices.stragglers(compute)
        findings += of_devices.gpus(compute, self._gpus)
        sizes = None
        if connected and self._answering:
            sizes = self._collectives(facts, all(len(c["gpus"]) for c in compute.values()))
        readable = "error" not in storage.get(head, {}).get("shards", {"error": ""})
        if words and readable and not weights_missing and self._answering:
            self._forecast(sizes)
        return one

    def _step(
        self,
        step: str,
        *,
        name: str | None = None,
        on: Sequence[str] | None = None,
        **more: Any,
    ) -> dict[str, dict[str, Any]]:
        """The facts of a step by node; nodes without are named, and leave what follows."""
        name = name or step
        print(f"doctor: {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        request: Request = {**self._request, "nodes": list(self._answering), **more}  # type: ignore[typeddict-item]
        answers = self._nodes.run(
            step,
            request,
            timeout_s=self._timeout_s or _TIMEOUTS_S[step],
            on=self._answering if on is None else on,
        )
        self._one.seconds[name] = time.monotonic() - start
        self._one.steps[name] = answers.facts
        self._one.findings += of_nodes.silent(name, answers.problems)
        lost = answers.silent | (set(answers.problems) if step == "facts" else set())
        self._answering = [node for node in self._answering if node not in lost]
        return answers.facts

    def _connect(self, facts: dict[str, dict[str, Any]]) -> bool:
        """Connect all pairs; whether collectives can work."""
        if len(self._answering) == 1:
            return True
        ports = {node: facts[node]["free_ports"][0] for node in self._answering}
        head = self._answering[0]
        if self._request["port"] and not facts[head]["port_problem"]:
            ports[head] = self._request["port"]
        tcp = self._step("tcp", ports=ports)
        found = of_network.connections(tcp, facts)
        self._one.findings += found
        return len(tcp) == len(self._answering) and not any(f.check == "network" for f in found)

    def _collectives(
        self, facts: dict[str, dict[str, Any]], with_gpus: bool
    ) -> dict[str, Any] | None:
        """gloo, then NCCL where all nodes have GPUs; the all-reduce between all ranks."""
        ports = facts[self._answering[0]]["free_ports"][1:]
        per_node = 2 if len(self._answering) == 1 else 1
        backends = [("gloo", per_node)]
        if with_gpus and self._gpus:
            backends.append(("nccl", self._gpus))
        sizes = None
        for (backend, ranks), port in zip(backends, ports, strict=False):
            facts_of = self._step(
                "collectives", name=backend, backend=backend, per_node=ranks, port=port
            )
            if not facts_of or len(facts_of) < len(self._answering):
                return sizes
            self._one.findings += of_network.collectives(backend, facts_of)
            sizes = next(iter(facts_of.values()))["all"]
        return sizes

    def _forecast(self, sizes: dict[str, Any] | None) -> None:
        """On the head alone: all nodes are compared by the step `compute`."""
        head = self._answering[0]
        facts = self._step("forecast", on=[head])
        if head in facts:
            self._one.forecast = forecasts.forecast(facts[head], sizes)
            self._one.findings += forecasts.findings(self._one.forecast, head)
