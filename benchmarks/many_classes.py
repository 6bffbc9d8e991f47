"""What a report costs as classes grow: peak memory and CPU seconds, one process for each number.

    python -m benchmarks.many_classes [--samples N] [--classes C ...] [--json FILE]

Made-up predictions, scored with intervals, slices and a temperature, then written with the image of
the confusion matrix and the page. No floors, no sample images. Peak memory is the process's, with
all that it imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CLASSES = (3, 30, 64, 200, 1_000)


def made_up(num_samples: int, num_classes: int) -> tuple[Any, Any]:
    """(predictions, facts of the samples): every tenth sample has a duplicate."""
    import numpy as np

    from mmsa.evaluation.inputs.sample_facts import SampleFacts
    from mmsa.evaluation.scores.metrics import Predictions

    random = np.random.default_rng(0)
    labels = random.integers(0, num_classes, num_samples)
    logits = random.normal(scale=1.5, size=(num_samples, num_classes)).astype(np.float32)
    logits[np.arange(num_samples), labels] += np.float32(2 + np.log(num_classes))
    names = tuple(f"class {c:04d}" for c in range(num_classes))
    keys = [f"{row:07d}" for row in range(num_samples)]
    facts = [
        SampleFacts(
            key, (0, row), row, f"text {'@a ' * (row % 3)}", row - (row % 10 == 1), None, None,
            width=40, height=30 + row % 20,
        )
        for row, key in enumerate(keys)
    ]  # fmt: skip
    return Predictions(keys, labels, logits, names), facts


def report(num_samples: int, num_classes: int, directory: Path) -> dict[str, float]:
    """Make one report; returns what it cost."""
    from mmsa.calibration import Calibration
    from mmsa.evaluation.inputs.seen_before import SeenBefore
    from mmsa.evaluation.report.files import write_report
    from mmsa.evaluation.report.findings import compute_findings
    from mmsa.evaluation.report.page.render import PAGE_NAME, render
    from mmsa.evaluation.report.predictions_file import rows_of

    predictions, facts = made_up(num_samples, num_classes)
    begin = time.process_time()
    findings = compute_findings(
        predictions, facts, seen=SeenBefore(None, "made up"),
        calibration=Calibration(1.5, "val", 1000, "", 1.0, 0.9), floors=None,
    )  # fmt: skip
    scored = time.process_time()
    peak_of_scores = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    identity = {"split": "test", "dataset": "made up", "protocol": {"name": "x", "hash": "0" * 64}}
    page = render(
        predictions, findings, identity, cards=[], training=[], audit=None, openings=1,
        title="made up", private=True,
    )  # fmt: skip
    write_report(
        directory, predictions, findings, identity, rows_of(predictions, facts, 1.5),
        extra_files={PAGE_NAME: page},
    )  # fmt: skip
    files = {path.name: path.stat().st_size for path in directory.iterdir()}
    return {
        "scores_cpu_s": scored - begin,
        "files_cpu_s": time.process_time() - scored,
        "scores_peak_bytes": peak_of_scores,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **{f"bytes of {name}": files[name] for name in sorted(files)},
    }


def measure(num_samples: int, num_classes: int) -> dict[str, Any]:
    """`report` in a process of its own; what its end says if it was killed."""
    command = [sys.executable, "-m", "benchmarks.many_classes", "--one", str(num_classes)]
    done = subprocess.run(
        [*command, "--samples", str(num_samples)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr[-300:]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--one", type=int, help="make one report in this process")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(report(arguments.samples, arguments.one, Path(directory))))
        return
    from benchmarks.results import machine, write_json

    figures = {}
    for num_classes in arguments.classes:
        found = figures[str(num_classes)] = measure(arguments.samples, num_classes)
        if "failed" in found:
            print(f"{num_classes:5} classes: {found['failed']}")
            continue
        print(
            f"{num_classes:5} classes: scores {found['scores_cpu_s']:6.1f} s, "
            f"{found['scores_peak_bytes'] / 1e6:6.0f} MB; with files {found['files_cpu_s']:6.1f} s "
            f"more, {found['peak_bytes'] / 1e6:6.0f} MB; page "
            f"{found['bytes of report.html'] / 1e6:.2f} MB, metrics.json "
            f"{found['bytes of metrics.json'] / 1e6:.2f} MB",
            flush=True,
        )
    write_json(
        arguments.json, {**machine(), "num_samples": arguments.samples, "by_classes": figures}
    )


if __name__ == "__main__":
    main()
