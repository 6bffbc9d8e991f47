"""What a stage found: findings with verdicts, figures, and a table; kept in a file of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import results

PASS, FAIL, MEASURED, NOT_RUN = "pass", "fail", "measured", "not run"
_GRAVEST_FIRST = (FAIL, NOT_RUN, PASS, MEASURED)


class NotRun(Exception):
    """This machine cannot answer; the message says why."""


class Failed(Exception):
    """What was run did not do what it must; the message says what was found."""


@dataclass(frozen=True)
class Finding:
    """One question, and its answer in a sentence."""

    name: str
    verdict: str
    said: str


@dataclass
class Outcome:
    """All that a stage found."""

    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    table: str = ""  # markdown
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """The gravest of its findings. What could not be run never passes."""
        found = {finding.verdict for finding in self.findings}
        return next((one for one in _GRAVEST_FIRST if one in found), NOT_RUN)

    @property
    def done(self) -> bool:
        """Whether the stage need not be repeated on the same machine, which lacks what it lacks."""
        return self.verdict != FAIL

    def check(self, name: str, right: bool, said: str) -> None:
        self.findings.append(Finding(name, PASS if right else FAIL, said))

    def measured(self, name: str, said: str) -> None:
        self.findings.append(Finding(name, MEASURED, said))

    def not_run(self, name: str, why: str) -> None:
        self.findings.append(Finding(name, NOT_RUN, why))

    @contextmanager
    def asking(self, name: str) -> Iterator[Callable[[bool, str], None]]:
        """Ask one question: whatever goes wrong inside is its answer, and the next one follows."""
        try:
            yield lambda right, said: self.check(name, right, said)
        except NotRun as why:
            self.not_run(name, str(why))
        except Exception as error:  # also of a library: a GPU's errors are RuntimeErrors
            self.check(name, False, shortened(f"{type(error).__name__}: {error}"))

    def lines(self) -> list[str]:
        """A line for each finding."""
        width = max((len(finding.name) for finding in self.findings), default=0)
        return [f"{one.name:{width}}  {one.verdict:8}  {one.said}" for one in self.findings]


def shortened(message: str, length: int = 400) -> str:
    """One line, its middle left out where it is long: causes stand at either end."""
    line = " ".join(message.split())
    return line if len(line) <= length else f"{line[: length // 2]} ... {line[-length // 2 :]}"


class Results:
    """The outcomes in a directory. Those of another machine, or of the other form, do not count."""

    def __init__(self, out: Path, machine: dict[str, Any]) -> None:
        """`machine`: the facts by which outcomes are comparable, such as device and tiny."""
        self._out, self._machine = out, machine
        (out / "stages").mkdir(parents=True, exist_ok=True)

    def _file(self, stage: str) -> Path:
        return self._out / "stages" / f"{stage}.json"

    def read(self, stage: str) -> Outcome | None:
        """What was found here before; None if nothing was."""
        try:
            content = json.loads(self._file(stage).read_text())
        except (OSError, ValueError):
            return None
        if content.pop("machine") != self._machine:
            return None
        findings = [Finding(**finding) for finding in content.pop("findings")]
        del content["verdict"]
        return Outcome(findings=findings, **content)

    def write(self, stage: str, outcome: Outcome) -> None:
        content = {"verdict": outcome.verdict, **asdict(outcome), "machine": self._machine}
        partial = self._file(stage).with_suffix(".tmp")
        results.write_json(partial, content)
        partial.replace(self._file(stage))

    def publish(self, stages: list[str], facts: dict[str, Any]) -> str:
        """Write results.json and results.md of all outcomes here; returns the latter."""
        found = {name: outcome for name in stages if (outcome := self.read(name)) is not None}
        content = {name: {"verdict": one.verdict, **asdict(one)} for name, one in found.items()}
        results.write_json(self._out / "results.json", {"hardware": facts, "stages": content})
        rows = [
            [name, finding.name, finding.verdict, finding.said.replace("|", "/")]
            for name, outcome in found.items()
            for finding in outcome.findings
        ]
        parts = [", ".join(f"{name} {value}" for name, value in facts.items())]
        parts.append(results.markdown(["stage", "", "verdict", "found"], rows))
        parts += [f"{name}:\n\n{one.table}" for name, one in found.items() if one.table]
        text = "\n\n".join(parts) + "\n"
        (self._out / "results.md").write_text(text)
        return text
