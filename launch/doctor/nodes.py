"""Runs a step of the doctor on every node, and says which nodes did not answer."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch import slurm_queue
from launch.doctor.node import Request, read_answers
from launch.site import ROOT

_SLACK_S = 15.0  # for srun, after the processes should have ended themselves
_ENDS_WITHIN_S = 10.0


@dataclass(frozen=True)
class Answers:
    """Of one step: the facts by node, and why others have none."""

    facts: dict[str, dict[str, Any]]
    problems: dict[str, str]
    silent: frozenset[str] = frozenset()  # of `problems`: nodes that said nothing at all


@dataclass(frozen=True)
class Nodes:
    """The nodes to examine: those of the SLURM job of this process, or this machine alone."""

    names: tuple[str, ...]
    slurm: bool
    container: str = ""  # prefix of the commands on a node

    @classmethod
    def of_this_job(cls, container: str = "") -> Nodes:
        listed = os.environ["SLURM_JOB_NODELIST"]
        names = slurm_queue.run_slurm("scontrol", "show", "hostnames", listed).split()
        return cls(tuple(names), slurm=True, container=container)

    @classmethod
    def here(cls) -> Nodes:
        return cls((socket.gethostname(),), slurm=False)

    def run(
        self, step: str, request: Request, *, timeout_s: float, on: Sequence[str] | None = None
    ) -> Answers:
        """Run `step` on the nodes `on` (None: all) at once, until all answered or time is up."""
        names = list(self.names if on is None else on)
        if not names:
            return Answers({}, {})
        full: Request = {**request, "timeout_s": timeout_s, "node": self.names[0]}
        full.setdefault("nodes", names)
        said, code = _output([*self._prefix(names), step, json.dumps(full)], timeout_s + _SLACK_S)
        answers = read_answers(said.splitlines())
        facts = {node: answers[node]["facts"] for node in names if "facts" in answers.get(node, {})}
        problems = {
            node: str(answers[node]["error"]) if node in answers else _silence(timeout_s, code)
            for node in names
            if node not in facts
        }
        return Answers(facts, problems, frozenset(problems) - frozenset(answers))

    def _prefix(self, names: Sequence[str]) -> list[str]:
        program = [sys.executable, "-m", "launch.doctor.node"]
        if not self.slurm:
            return program
        if self.container:
            program = [*shlex.split(self.container), "python", *program[1:]]
        # --wait=0 and --kill-on-bad-exit=0: what one node does ends no other.
        number = len(names)
        return [
            *["srun", "--overlap", f"--nodelist={','.join(names)}", f"--nodes={number}"],
            *[f"--ntasks={number}", "--ntasks-per-node=1", "--cpu-bind=none", "--mem=0"],
            *["--wait=0", "--kill-on-bad-exit=0", "--quiet", f"--chdir={os.getcwd()}", *program],
        ]


def _output(command: Sequence[str], timeout_s: float) -> tuple[str, int | None]:
    """(standard output, exit code; None where the time was up). Standard error is passed on."""
    environment = dict(os.environ)
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # srun inherits it neither from sbatch nor from salloc, and would measure with one core.
    names = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_JOB_CPUS_PER_NODE")
    found = (re.match(r"\d+", environment.get(name, "")) for name in names)  # as in 8(x2)
    cpus = next((one[0] for one in found if one), None)
    if cpus:
        environment.setdefault("SRUN_CPUS_PER_TASK", cpus)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        return process.communicate(timeout=timeout_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        return process.communicate(timeout=_ENDS_WITHIN_S)[0], None
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], None


def _silence(timeout_s: float, code: int | None) -> str:
    if code is None:
        return f"no answer within {timeout_s:.0f} s"
    return f"no answer: its process ended, or was ended after {timeout_s:.0f} s (see above)"
