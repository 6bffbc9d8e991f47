"""`python -m launch.doctor.node STEP REQUEST`: one step on one node, in a process of its own.

Prints the answer as JSON in pieces that srun never mixes with those of other nodes: it forwards at
most 1,024 bytes at a time. All else that a library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TypedDict

from mmsa.foundation.parsing import parse_json

_MARK = "@doctor"
_PIECE = 600  # characters of an answer on a line


class Request(TypedDict, total=False):
    """What a step may need. The driver fills in what is known by then."""

    timeout_s: float  # the process ends itself after it
    node: str  # the name of this node where SLURM does not say it
    nodes: list[str]  # all nodes, the head first
    port: int  # of the rendezvous, on the head; 0: none was requested
    ports: dict[str, int]  # node -> a port that was free there
    backend: str  # gloo or nccl
    per_node: int  # processes of a collective on each node
    rank: int  # of this process in a collective: set for its children by the step itself
    gpus: int  # a node is expected to have
    run_dir: str
    shards: str
    words: list[str]  # CONFIG and overrides
    imports: list[str]  # modules of --import
    cache: str  # the site's cache of weights
    processes: int  # ranks of the run on each node


def this_node(request: Request) -> str:
    """The name of the node that this process runs on, as the driver knows it."""
    return os.environ.get("SLURMD_NODENAME") or request["node"]


def as_lines(node: str, answer: dict[str, Any]) -> list[str]:
    """The lines of an answer: mark, node, number and total of the piece, piece."""
    text = json.dumps(answer)
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    return [f"{_MARK} {node} {at} {len(pieces)} {piece}" for at, piece in enumerate(pieces)]


def read_answers(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Node -> answer, of all answers that arrived whole; other lines are ignored."""
    parts: dict[str, dict[int, str]] = {}
    totals: dict[str, int] = {}
    for line in lines:
        if line.startswith(f"{_MARK} "):
            _, node, at, total, piece = line.rstrip("\n").split(" ", maxsplit=4)
            parts.setdefault(node, {})[int(at)] = piece
            totals[node] = int(total)
    return {
        node: parse_json("".join(found[at] for at in range(totals[node])))
        for node, found in parts.items()
        if len(found) == totals[node]
    }


def main(argv: list[str]) -> None:
    """Run one step and print its answer: {"facts": ...}, or {"error": ...} where it failed."""
    step, request = argv[0], parse_json(argv[1])
    # A thread of its own, which also ends a process that is stuck inside a library.
    faulthandler.dump_traceback_later(request["timeout_s"], exit=True)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        answer: dict[str, Any]
        try:
            answer = {"facts": importlib.import_module(f"launch.doctor.steps.{step}").run(request)}
        except Exception as error:
            said = " ".join(str(error).split())
            answer = {"error": f"{type(error).__name__}: {said:.600}"}
        name = f"{this_node(request)}" + (f":{request['rank']}" if "rank" in request else "")
        answers.write("\n".join(as_lines(name, answer)) + "\n")
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # without waiting for threads of a connection that hangs


if __name__ == "__main__":
    main(sys.argv[1:])
