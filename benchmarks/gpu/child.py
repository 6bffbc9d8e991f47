"""One measuring process: `python -m benchmarks.gpu.child --work NAME --asked JSON`.

Started by `Bench.child`. The main rank prints the figures in one line. What may be asked for is in
`WORKS`.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module
from typing import Any

MARK = "measured: "  # begins the line in which a child gives its figures
WORKS = {
    "streams": "benchmarks.gpu.inside:streams",
    "syncs": "benchmarks.gpu.inside:syncs",
    "memory": "benchmarks.gpu.inside:memory",
    "arms": "benchmarks.gpu.steps:timed_arms",
    "peak": "benchmarks.gpu.steps:peak",
    "checkpoints": "benchmarks.gpu.saves:timed_saves",
    "trace": "benchmarks.gpu.kernels:traced",
    "bandwidth": "benchmarks.gpu.kernels:bandwidth",
}


def work_of(name: str, asked: dict[str, Any]) -> Any:
    module, _, function = WORKS[name].partition(":")
    arguments = {key: value for key, value in asked.items() if key != "limit_s"}
    return getattr(import_module(module), function)(**arguments)


def run_here(name: str, asked: dict[str, Any]) -> Any:
    """The same in this process, with what JSON makes of question and answer."""
    try:
        return json.loads(json.dumps(work_of(name, json.loads(json.dumps(asked)))))
    finally:
        fresh_accelerate()


def fresh_accelerate() -> None:
    """Let another engine start in this process: Accelerate keeps its state in the process."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()


def main() -> None:
    from mmsa.process.runtime import prepare_process

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, choices=WORKS)
    parser.add_argument("--asked", required=True, type=json.loads)
    options = parser.parse_args()
    prepare_process()
    found = work_of(options.work, options.asked)
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{MARK}{json.dumps(found)}", flush=True)
    os._exit(0)  # ends loader workers too, and gloo's threads sometimes abort a process at exit


if __name__ == "__main__":
    main()
