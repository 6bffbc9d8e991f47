"""What the doctor says: one problem, with everything needed to act on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Level = Literal["error", "warning"]
ERROR: Final = "error"
WARNING: Final = "warning"
ByNode = Mapping[str, dict[str, Any]]  # node -> the facts of a step


@dataclass(frozen=True)
class Finding:
    """A problem on `nodes`. `check` is its step, `docs` the section that explains it."""

    level: Level
    check: str
    nodes: tuple[str, ...]
    what: str
    found: str
    expected: str
    do: str

    @property
    def docs(self) -> str:
        return f"docs/doctor.md#{self.check}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "nodes": list(self.nodes), "docs": self.docs}


def exit_code(findings: list[Finding]) -> int:
    """0 where there is none, 1 for warnings, 2 for errors."""
    levels = {finding.level for finding in findings}
    return 2 if ERROR in levels else 1 if levels else 0


def by_value(values: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Value -> the nodes that have it, the most common value first."""
    found: dict[Any, list[str]] = {}
    for node, value in values.items():
        found.setdefault(value, []).append(node)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def size(number: float) -> str:
    """Bytes as a person writes them: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
