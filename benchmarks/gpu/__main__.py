"""Run the stages, one after the other; see the package."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.gpu
from benchmarks import results
from benchmarks.gpu.bench import Bench, gpu_count
from benchmarks.gpu.outcome import FAIL, NotRun, Outcome, Results, shortened
from benchmarks.gpu.stages import SEVERAL, STAGES, Stage

NAMES = [stage.name for stage in STAGES]


def main(argv: Sequence[str] | None = None, *, in_process: bool = False) -> int:
    """Run what the command line says; 1 if a stage failed.

    `in_process` is for tests: what needs a launcher is not run.
    """
    options = _parser().parse_args(argv)
    gpus, ends_at = gpu_count(), time.monotonic() + 60 * options.minutes
    bench = Bench(
        options.out.resolve(),
        options.tiny,
        gpus,
        seconds=options.seconds or (0.3 if options.tiny else 4.0),
        in_process=in_process,
        ends_at=ends_at,
    )
    facts = _facts(options.tiny, gpus)
    machine = {name: facts[name] for name in ("device", "gpus", "form", "torch")}
    results = Results(bench.out, machine)
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    failed = False
    for stage in STAGES:
        if stage.name in (options.stages or NAMES):
            outcome = _answered(stage, bench, results)
            failed |= outcome.verdict == FAIL
    results.publish(NAMES, facts)
    print(f"\n{bench.out}/results.md and results.json have all of them", flush=True)
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    stages = "\n".join(f"  {stage.name:12}{stage.question}" for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=f"{benchmarks.gpu.__doc__}\nstages, the most important first:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="default: %(default)s")
    parser.add_argument("--stages", nargs="+", choices=NAMES, metavar="NAME", help="only these")
    parser.add_argument("--tiny", action="store_true", help="tiny encoders, few steps")
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="start no stage that would pass this limit"
    )
    parser.add_argument("--seconds", type=float, help="measured time of each arm (4; tiny: 0.3)")
    return parser


def _facts(tiny: bool, gpus: int) -> dict[str, Any]:
    """Of the machine; without a context on its GPUs in this process."""
    from importlib.metadata import version

    facts = {**results.machine(), "gpus": gpus, "form": "tiny" if tiny else "whole"}
    device = results.gpu_name() if gpus else facts["machine"]
    packages = ("torch", "transformers", "accelerate", "deepspeed")
    return {
        **{"device": device, **facts, "load": round(os.getloadavg()[0], 1)},
        "date": time.strftime("%Y-%m-%d"),
        **{name: version(name) for name in packages},
    }


def _answered(stage: Stage, bench: Bench, results: Results) -> Outcome:
    """The stage's outcome: of an earlier command, or of now. Printed and kept."""
    before = results.read(stage.name)
    if before is not None and before.done:
        print(f"\n{stage.name}: {before.verdict}, found before", flush=True)
        return before
    outcome, began = Outcome(), time.monotonic()
    lacking = stage.name in SEVERAL and bench.gpus == 1
    estimate_s = 0.0 if bench.tiny or lacking else stage.estimate_s
    left_s = bench.ends_at - began
    if left_s < estimate_s:
        why = f"takes about {estimate_s:.0f} s, and {max(0.0, left_s):.0f} are left"
        outcome.not_run("time", why)
    else:
        print(f"\n{stage.name}: {stage.question}", flush=True)
        try:
            stage.work(bench, outcome)
        except NotRun as why:
            outcome.not_run("all", str(why))
        except Exception as error:  # the next stage follows whatever happened
            outcome.check("all", False, shortened(f"{type(error).__name__}: {error}"))
        if not bench.on_gpu:
            outcome.not_run("GPU", "there is none; the rest is of CPU processes and gloo")
        outcome.seconds = time.monotonic() - began
        results.write(stage.name, outcome)
    for line in outcome.lines():
        print(f"  {line}")
    if outcome.table:
        print(f"\n{outcome.table}\n")
    print(f"{stage.name}: {outcome.verdict} ({outcome.seconds:.0f} s)", flush=True)
    return outcome


if __name__ == "__main__":
    raise SystemExit(main())
