"""What the audit costs in a real training step, in CPU time of the rank.

    python -m benchmarks.audit --shards DIR [--config FILE] [--steps N] [section.key=value ...]

Runs train.py with one process. The first steps warm up and do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import train
from mmsa.data.audit_files import AuditWriter

WARM_UP = 5


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """`function`, with the CPU seconds of each call appended to `spent`."""

    def call(*arguments: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*arguments)
        finally:
            spent.append(time.process_time() - begin)

    return call


def measure(shards: str, config: str, steps: int, overrides: list[str]) -> tuple[float, float]:
    """Mean CPU milliseconds of (a step, the audit in it)."""
    step_s: list[float] = []
    audit_s: list[float] = []
    train.train_step = timed(train.train_step, step_s)
    AuditWriter.write = timed(AuditWriter.write, audit_s)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"data.shards={shards}", f"run.dir={folder}/run", "run.audit=true"]
        settings += [f"train.max_steps={steps + WARM_UP}", "train.epochs=1000", *overrides]
        assert train.main(["--config", config, *settings]) == 0
    assert len(step_s) == len(audit_s) == steps + WARM_UP
    return 1e3 * sum(step_s[WARM_UP:]) / steps, 1e3 * sum(audit_s[WARM_UP:]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True, help="packed data")
    parser.add_argument("--config", default="launch/runs/demo.yaml", help="run configuration")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    assert Path(arguments.config).is_file(), arguments.config
    step_ms, audit_ms = measure(
        arguments.shards, arguments.config, arguments.steps, arguments.overrides
    )
    print(
        f"a step: {step_ms:.1f} ms of CPU time; the audit in it: {1e3 * audit_ms:.0f} us, "
        f"{audit_ms / step_ms:.3%}"
    )


if __name__ == "__main__":
    main()
