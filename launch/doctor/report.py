"""What the doctor found, for a person (a table) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.doctor.findings.finding import Finding, exit_code, size
from launch.doctor.findings.forecast import Forecast, in_words

_COLOURS = {"error": "red", "warning": "yellow"}


@dataclass
class Examination:
    """Everything that was measured and found."""

    nodes: Sequence[str]
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)  # step -> node -> facts
    seconds: dict[str, float] = field(default_factory=dict)  # step -> wall time
    findings: list[Finding] = field(default_factory=list)
    forecast: Forecast | None = None

    @property
    def exit_code(self) -> int:
        return exit_code(self.findings)

    def as_json(self) -> str:
        return json.dumps(
            {
                "nodes": list(self.nodes),
                "exit_code": self.exit_code,
                "findings": [finding.as_json() for finding in self.findings],
                "forecast": None if self.forecast is None else self.forecast.as_json(),
                "steps": self.steps,
                "seconds": self.seconds,
            },
            indent=1,
        )


def show(one: Examination) -> None:
    """Print what was measured on each node, then each finding, then the forecast."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("node")
    columns = ["answers", "cores", "CPU", "GPUs", "write", "read", "samples read"]
    for column in columns:
        table.add_column(column, justify="right")
    for node in one.nodes:
        table.add_row(node, *_row(node, one))
    console.print(table)
    if missing := _not_asked_for(one):
        console.print(missing, markup=False)
    for line in _network(one):
        console.print(line)
    for finding in one.findings:
        colour = _COLOURS[finding.level]
        where = ", ".join(finding.nodes)
        console.print(f"\n[{colour}]{finding.level}[/] {where}: ", end="")
        console.print(finding.what, markup=False)
        for name in ("found", "expected", "do", "docs"):
            console.print(f"  {name:<9}{getattr(finding, name)}", markup=False)
    if one.forecast is not None:
        console.print("\nforecast")
        for line in in_words(one.forecast):
            console.print(f"  {line}", markup=False)
    errors = sum(finding.level == "error" for finding in one.findings)
    console.print(
        f"\n{errors} error(s), {len(one.findings) - errors} warning(s), "
        f"{len(one.nodes)} node(s), {sum(one.seconds.values()):.0f} s"
    )


def _row(node: str, one: Examination) -> list[str]:
    def of(step: str) -> dict[str, Any]:
        return dict(one.steps.get(step, {}).get(node, {}))

    answers = sum(node in facts for facts in one.steps.values())
    expected = sum(step != "forecast" or node == one.nodes[0] for step in one.steps)
    compute, storage = of("compute"), of("storage")
    shards = storage.get("shards", {})
    written = storage.get("run_dir", {}).get("write_bytes_per_s")
    flops = compute.get("cpu_flops_per_s")
    return [
        f"{answers} of {expected}",
        str(of("facts").get("cpus", "-")),
        f"{flops / 1e9:.0f} GFLOP/s" if flops else "-",
        str(len(compute.get("gpus", []))),
        f"{size(written)}/s" if written else "-",
        f"{size(shards['bytes_per_s'])}/s" if "bytes_per_s" in shards else "-",
        f"{shards['samples_per_s']:.0f}/s" if "samples_per_s" in shards else "-",
    ]


def _not_asked_for(one: Examination) -> str:
    """Which options fill the columns that are empty because the options were not given; or ""."""
    found = one.steps.get("storage", {}).values()
    options = {"run_dir": "--run-dir DIR: write", "shards": "--shards OUT: read, samples read"}
    missing = [
        words for name, words in options.items() if not any(name in facts for facts in found)
    ]
    return f"not measured; add {'; '.join(missing)}" if found and missing else ""


def _network(one: Examination) -> list[str]:
    """A line for each backend: latency at the smallest size, bandwidth at the largest."""
    lines = []
    for backend in ("gloo", "nccl"):
        for facts in list(one.steps.get(backend, {}).values())[:1]:
            for where in ("all", "within"):
                sizes = facts.get(where)
                if not sizes:
                    continue
                least, most = min(sizes, key=int), max(sizes, key=int)
                lines.append(
                    f"{backend}, {'all ranks' if where == 'all' else 'within a node'}: "
                    f"{1e6 * sizes[least]['seconds']:.0f} us at {size(int(least))}, "
                    f"{size(sizes[most]['bus_bytes_per_s'])}/s at {size(int(most))}"
                )
    return lines
