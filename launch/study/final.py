"""The one opening of the test split: the winner by validation, beside what it is compared with.

Which variants were chosen is written to OUT/final.json before the first test sample is read, and
never changed: another choice, after test was seen, would be a choice by test.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.study.answer import best_variant, final_answer
from launch.study.question import Study
from launch.study.running import evaluation_command
from launch.study.trials import Trial
from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.parsing import parse_json

FINAL_NAME = "final.json"


def open_test(
    study: Study, trials: Sequence[Trial], found: Mapping[str, Any], out: Path, named: Sequence[str]
) -> dict[str, Any]:
    """Evaluate the chosen variants on test; the content of OUT/final.json.

    `named` are further variants to open test for, chosen before its scores are known. Raises
    `UserError` while runs are missing, for another choice than the first, and where an evaluation
    fails.
    """
    best = best_variant(found, out)
    unknown = sorted(set(named) - set(study.variants))
    if unknown:
        raise UserError(
            f"--final {' '.join(unknown)}: no such variant; the study has "
            f"{', '.join(study.variants)}"
        )
    chosen = list(dict.fromkeys([best, study.compared_with, *named]))
    path = out / FINAL_NAME
    before = read_final(out)
    if before is not None and before["chosen"] != chosen:
        raise UserError(
            f"test was opened on {before['opened']} for {', '.join(before['chosen'])}, and now "
            f"{', '.join(chosen)} are asked for. A second choice would know the first one's "
            f"scores; they are in {path}"
        )
    content = before or {"best": best, "chosen": chosen, "opened": time.strftime("%Y-%m-%d")}
    _write(path, content)
    own = [trial for trial in trials if trial.variant in chosen]
    for number, trial in enumerate(own, start=1):
        if not trial.is_scored("test"):
            print(f"[{number}/{len(own)}] {trial.name}: test", flush=True)
            _evaluate(study, trial)
    content["comparison"] = final_answer(study, own)
    _write(path, content)
    return content


def read_final(out: Path) -> dict[str, Any] | None:
    """What was chosen and found at the opening of test; None before it."""
    try:
        content = parse_json((out / FINAL_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _evaluate(study: Study, trial: Trial) -> None:
    command = evaluation_command(study, trial, "test")
    with trial.log.open("ab") as lines:
        code = subprocess.run(
            command, stdout=lines, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise UserError(f"{trial.name} cannot be evaluated on test (exit code {code}): {trial.log}")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=1) + "\n")
