"""Stage: an evaluation in three precisions, its time, and what each costs in predictions."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Bench, last_error
from benchmarks.gpu.correctness import correctness_settings
from benchmarks.gpu.outcome import Failed, Outcome

AGREES = 1e-3  # of a logit in strict float32 on the device, against the CPU's
Predicted = dict[str, tuple[str, list[float]]]  # by key: class and logits


def precisions(bench: Bench, outcome: Outcome) -> None:
    """Strict float32 on the device against the CPU, then TF32 and bf16 against strict float32."""
    steps = 6 if bench.tiny else 60
    run_dir = bench.out / "evaluation" / "run"
    shutil.rmtree(run_dir.parent, ignore_errors=True)
    bench.train(correctness_settings(bench, run_dir, steps), "single")
    strict, _ = _evaluated(bench, run_dir, "no")
    if bench.on_gpu:
        with outcome.asking("float32 against the CPU's") as answer:
            cpu, _ = _evaluated(bench, run_dir, "no", CUDA_VISIBLE_DEVICES="")
            changed, apart = compared(cpu, strict)
            answer(apart <= AGREES, f"{changed} predictions differ, logits by {apart:.1e} at most")
    else:
        outcome.not_run("float32 against the CPU's", "needs a GPU")
    for precision in ("no", "tf32", "bf16"):
        with outcome.asking(precision):
            if precision == "tf32":
                bench.need_gpu("TF32")
            found, seconds = _evaluated(bench, run_dir, precision)
            changed, apart = compared(strict, found)
            outcome.figures[precision] = {"changed": changed, "apart": apart, "seconds": seconds}
            said = f"{changed} of {len(strict)} predictions differ, logits by {apart:.1e} at most"
            outcome.measured(precision, f"{said}; {seconds:.1f} s with the start")
    shutil.rmtree(run_dir.parent)


def compared(first: Predicted, second: Predicted) -> tuple[int, float]:
    """How many predictions differ, and the largest difference of a logit."""
    assert first.keys() == second.keys()
    changed = sum(first[key][0] != second[key][0] for key in first)
    apart = max(
        abs(one - other)
        for key in first
        for one, other in zip(first[key][1], second[key][1], strict=True)
    )
    return changed, apart


def _evaluated(
    bench: Bench, run_dir: Path, precision: str, **environment: str
) -> tuple[Predicted, float]:
    """(predictions, wall seconds) of evaluate.py on the training split, which is the largest."""
    out = run_dir.parent / "report"
    shutil.rmtree(out, ignore_errors=True)
    words = [str(run_dir), "--checkpoint", "last", "--split", "train", "--out", str(out)]
    words += ["--precision", precision, "--no-floors", "--no-page", "--again"]
    begin = time.perf_counter()
    if bench.in_process and not environment:
        from benchmarks.gpu.child import fresh_accelerate
        from evaluate import main as evaluate_main

        if evaluate_main(words) != 0:
            raise Failed("evaluate.py failed")
        fresh_accelerate()
    else:
        ended = bench.run([sys.executable, "evaluate.py", *words], 180.0, **environment)
        if ended.returncode != 0:
            raise Failed(last_error(ended))
    seconds = time.perf_counter() - begin
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()
    ]
    return {row["key"]: (row["predicted"], row["logits"]) for row in rows}, seconds
