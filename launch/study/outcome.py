"""The files of an answer: study.json, study.html and best.yaml."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.study.answer import answer
from launch.study.final import open_test, read_final
from launch.study.page import render
from launch.study.question import Study
from launch.study.search.directories import TrialDirectories, TrialDirectory
from launch.study.search.summary import is_finished, summary
from launch.study.searching import trial_overrides
from launch.study.trials import Trial
from mmsa.foundation.atomic_write import write_file, write_files
from mmsa.foundation.settings_yaml import dump_settings


def base_file(study: Study, out: Path) -> Path:
    """The base configuration as a file; one that stands in STUDY.yaml is written to OUT."""
    if isinstance(study.base, str):
        return Path(study.base)
    path, content = out / "base.yaml", dump_settings(study.base)
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_file(path, content)
    return path


def answered(
    study: Study, trials: Sequence[Trial], out: Path, final: Sequence[str] | None
) -> dict[str, Any]:
    """The answer, written to OUT."""
    found = answer(study, trials)
    if study.search is not None:
        searched = TrialDirectories(out).all()
        found["search"] = _searched(study, searched, out)
        if not is_finished(study.search, searched):
            found["best"] = None  # which trials are compared is not known yet
    opened = read_final(out) if final is None else open_test(study, trials, found, out, final)
    commands = commands_of(study, trials, out)
    files: dict[str, bytes] = {
        "study.json": (json.dumps(found | {"commands": commands}, indent=1) + "\n").encode(),
        "study.html": render(found, opened, commands, out.name),
    }
    best = _best_settings(study, trials, found)
    if best is not None:
        files["best.yaml"] = _best_configuration(study, out, best)
    try:
        write_files(out, files)
    except OSError as error:
        print(f"the answer cannot be written to {out} ({error.strerror})", file=sys.stderr)
    return found


def commands_of(study: Study, trials: Sequence[Trial], out: Path) -> dict[str, list[str]]:
    """Variant -> the command that repeats each of its runs, in one process."""
    base = base_file(study, out)
    commands: dict[str, list[str]] = {}
    for trial in trials:
        words = study.training_words(base, trial.overrides(study))
        commands.setdefault(trial.variant, []).append(shlex.join(["python", "train.py", *words]))
    return commands


def _searched(study: Study, trials: Sequence[TrialDirectory], out: Path) -> dict[str, Any]:
    """The search as JSON, with the command that repeats each trial in one process."""
    assert study.search is not None
    found = summary(study.search, study.metric, trials)
    for row, trial in zip(found["trials"], trials, strict=True):
        if trial.values is not None:
            overrides = trial_overrides(study, trial)
            words = study.training_words(base_file(study, out), overrides)
            row["command"] = shlex.join(["python", "train.py", *words])
    return found


def _best_settings(
    study: Study, trials: Sequence[Trial], found: dict[str, Any]
) -> list[str] | None:
    """The settings of the winner: the best variant, or of a search alone its best trial."""
    if found["best"] is not None:
        return next(one for one in trials if one.variant == found["best"]).overrides(study)
    if study.search is None or study.search.confirm is not None:
        return None
    searched = found["search"]
    rows = [row for row in searched["trials"] if row["name"] == searched["best"]]
    own = [f"run.seed={study.search.seed}"]
    return [*study.settings, *rows[0]["settings"], *own] if rows else None


def _best_configuration(study: Study, out: Path, settings: Sequence[str]) -> bytes:
    """The winner's configuration for `train.py --config`, without its run directory and shards."""
    from mmsa.config import load_config

    content = load_config(str(base_file(study, out)), settings).content()
    content["run"].pop("dir", None)
    if study.folds is not None:
        content["data"].pop("shards")
    return dump_settings(content).encode("utf-8")
