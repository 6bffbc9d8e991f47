"""Which recipe is best out of fold: trains and evaluates every variant of a study on every fold.

    python -m benchmarks.recipes STUDY.yaml RAW OUT --text DIR --image DIR [--jobs 2] [--minutes M]
    python -m benchmarks.recipes STUDY.yaml RAW OUT --status
    python -m benchmarks.recipes STUDY.yaml RAW OUT --table [--fold K]

STUDY.yaml has `base` (a run configuration), `variants` (name -> list of settings, in which `{fold}`
stands for the run's fold and `{out}` for OUT), `soups` (name -> variants whose weights are mixed
fold by fold, by validation), `order` (rows of variants, soups and folds, the most wanted first) and
`ensembles` (name -> variants whose probabilities are averaged). Each run is one process of one
thread; `--jobs` of them run at a time. The same command again goes on: runs resume, finished ones
stay. Variants are compared by the validation scores of `--status` alone until `--table` opens the
reports of the test folds, which pooled are every sample once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from launch.study.question import flat
from mmsa.evaluation.compare.comparison import compare
from mmsa.evaluation.compare.comparison_text import comparison_text
from mmsa.evaluation.compare.ensemble import ensemble_identity, joined
from mmsa.evaluation.compare.experiments import pooled_experiments
from mmsa.evaluation.report.read_report import Report, read_report
from mmsa.evaluation.scores.metrics import Predictions

_ROOT = Path(__file__).resolve().parents[1]
_packing = threading.Lock()


class Trial(NamedTuple):
    """One run of the study."""

    variant: str
    fold: int

    def directory(self, out: Path) -> Path:
        return out / self.variant / f"fold-{self.fold}"


def trials(study: dict[str, Any]) -> list[Trial]:
    """All runs of the study, in its order, each once."""
    rows = [
        Trial(variant, fold)
        for row in study["order"]
        for fold in row["folds"]
        for variant in row["variants"]
    ]
    return list(dict.fromkeys(rows))


def report_of(directory: Path) -> Path:
    """The metrics of a run's test fold."""
    return directory / "reports" / "test-best" / "metrics.json"


def shards_of(study: dict[str, Any], raw: str, out: Path, trial: Trial) -> Path:
    """The shards of the trial's fold, packed if they are not there."""
    own = study.get("sources", {}).get(trial.variant, study["source"])
    name, folder, fold = own["name"], own.get("raw", "."), trial.fold
    shards = out / "shards" / name / f"fold-{fold}"
    if not (shards / "manifest.json").exists():
        protocol = f"kfold:{fold}/{study['folds']}"
        command = ["-m", "shards", "pack", name, str(Path(raw, folder)), str(shards)]
        command += ["--protocol", protocol, "--quiet", "--resume", *own.get("options", [])]
        subprocess.run([sys.executable, *command], cwd=_ROOT, check=True)
    return shards


def seconds_of_cpu() -> float:
    """CPU seconds of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def is_soup(study: dict[str, Any], variant: str) -> bool:
    return variant in study.get("soups", {})


def training_of(study: dict[str, Any], out: Path, trial: Trial, shards: Path) -> list[str]:
    """The arguments of the command that trains the trial."""
    directory = trial.directory(out)
    settings = [
        one.format(out=out, fold=trial.fold) for one in flat(study["variants"][trial.variant])
    ]
    places = [f"data.shards={shards}", f"run.dir={directory}"]
    return ["train.py", "--config", str(out / "base.yaml"), *settings, *places]


def mixing_of(study: dict[str, Any], out: Path, trial: Trial) -> list[str]:
    """The arguments of the command that mixes the soup of a fold; of one there already, nothing."""
    directory = trial.directory(out) / "best"
    if directory.exists():
        return ["-c", ""]
    runs = [str(Trial(one, trial.fold).directory(out)) for one in study["soups"][trial.variant]]
    return ["-m", "mmsa", "soup", *runs, "--output", str(directory), "--num-workers", "0"]


def run_trial(study: dict[str, Any], options: argparse.Namespace, trial: Trial) -> str:
    """Train or mix the trial and evaluate it on its test fold; what came of it."""
    out = options.out
    directory = trial.directory(out)
    with _packing:  # another trial may need the same fold
        shards = shards_of(study, options.raw, out, trial)
    if report_of(directory).exists():
        return "there already"
    if is_soup(study, trial.variant):
        model = str(directory / "best")
        first = mixing_of(study, out, trial)
    else:
        model = str(directory)
        first = training_of(study, out, trial, shards)
    log = directory.with_suffix(".log")
    directory.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    report = str(report_of(directory).parent)
    commands = [
        first,
        ["evaluate.py", model, "--split", "test", "--no-page", "--out", report],
    ]
    with log.open("a") as lines:
        for command in commands:
            begin = time.monotonic()
            ended = subprocess.run(
                [sys.executable, *command],
                cwd=_ROOT,
                env=environment,
                stdout=lines,
                stderr=subprocess.STDOUT,
                check=False,
            )
            lines.write(
                f"{' '.join(command[:3])}: {time.monotonic() - begin:.0f} s, {ended.returncode}\n"
            )
            if ended.returncode:
                return f"{' '.join(command[:3])} ended with {ended.returncode}; see {log}"
    return "done"


def validation_score(directory: Path) -> float | None:
    """The best weighted F1 of a run on validation so far."""
    file = directory / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    scores = [row["weighted_f1"] for row in rows if row["kind"] == "validation"]
    return max(scores, default=None)


def status(study: dict[str, Any], out: Path) -> Iterator[str]:
    """A line for each variant: validation scores of its folds."""
    done: dict[str, dict[int, float]] = {}
    for trial in trials(study):
        score = validation_score(trial.directory(out))
        row = done.setdefault(trial.variant, {})
        if score is not None:
            row[trial.fold] = score
    for variant, row in done.items():
        shown = " ".join(
            f"{row[fold]:.4f}" if fold in row else "     -" for fold in range(1, study["folds"] + 1)
        )
        mean = sum(row.values()) / len(row) if row else float("nan")
        yield f"{variant:24} {shown}  mean {mean:.4f} of {len(row)}"


def whole_experiments(study: dict[str, Any], out: Path, fold: int | None) -> Iterator[Report]:
    """The variants whose folds are all done, each sample predicted by the run of its fold; with
    `fold`, those of which that one is done."""
    variants = dict.fromkeys(trial.variant for trial in trials(study))
    every = range(1, study["folds"] + 1) if fold is None else [fold]
    for variant in variants:
        directories = [Trial(variant, fold).directory(out) for fold in every]
        if not all(report_of(directory).exists() for directory in directories):
            continue
        if fold is not None:
            yield read_report(report_of(directories[0]).parent, variant)
            continue
        reports = [
            read_report(report_of(directory).parent, f"{variant}/{directory.name}")
            for directory in directories
        ]
        yield from pooled_experiments(reports)


def ensembles(study: dict[str, Any], reports: list[Report]) -> Iterator[Report]:
    """The ensembles of the study whose members are all among `reports`: of the same data set."""
    of_name = {report.name: report for report in reports}
    for name, variants in study.get("ensembles", {}).items():
        members = [of_name[variant] for variant in variants if variant in of_name]
        if len(members) < len(variants):
            continue
        first = members[0]
        assert all(other.predictions.keys == first.predictions.keys for other in members)
        identity = first.identity | ensemble_identity([each.identity for each in members])
        yield Report(name, first.directory, identity, joined(members), first.groups)


def labels_agree(report: Report, out: Path) -> NDArray[np.bool_]:
    """(N,): whether text and image of each sample have the same label."""
    rows: dict[str, bool] = {}
    for file in (out / report.name).glob("fold-*/reports/test-best/predictions.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[row["key"]] = row["text_label"] == row["image_label"]
    return np.array([rows[key] for key in report.predictions.keys])


def part_of(report: Report, chosen: NDArray[np.bool_]) -> Report:
    """The report of the chosen samples (N,) alone."""
    whole = report.predictions
    part = Predictions(
        [key for key, is_chosen in zip(whole.keys, chosen, strict=True) if is_chosen],
        whole.labels[chosen],
        whole.logits[chosen],
        whole.label_names,
    )
    return Report(report.name, report.directory, report.identity, part, report.groups[chosen])


def tables(study: dict[str, Any], out: Path, fold: int | None) -> Iterator[str]:
    """The whole experiments compared: on all samples, where both labels agree, and where not."""
    of_set: dict[str, list[Report]] = {}
    for report in whole_experiments(study, out, fold):
        of_set.setdefault(str(report.identity["dataset"]), []).append(report)
    for dataset, reports in of_set.items():
        agree = labels_agree(reports[0], out)
        reports += ensembles(study, reports)
        for title, chosen in (
            (f"{dataset}, all samples", np.ones_like(agree)),
            ("text and image label agree", agree),
            ("they conflict", ~agree),
        ):
            if chosen.any():
                found = compare([part_of(report, chosen) for report in reports], "weighted_f1")
                yield f"## {title}\n\n{comparison_text(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("raw", help="the raw data of MVSA-Single")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", default="", help="what TEXT stands for in the study's settings")
    parser.add_argument("--image", default="", help="what IMAGE stands for")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--status", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--fold", type=int, metavar="K", help="with --table: of this fold alone")
    options = parser.parse_args()
    options.out = options.out.resolve()
    study = yaml.safe_load(options.study.read_text())
    if options.status:
        print("\n".join(status(study, options.out)))
        return
    if options.table:
        print("\n".join(tables(study, options.out, options.fold)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    base = yaml.safe_dump(study["base"], sort_keys=False)
    named = base.replace(": TEXT", f": {options.text}").replace(": IMAGE", f": {options.image}")
    (options.out / "base.yaml").write_text(named)
    deadline = time.monotonic() + 60 * options.minutes

    def worked(trial: Trial) -> str:
        if time.monotonic() > deadline or (options.out / "stop").exists():
            return "not begun"
        return run_trial(study, options, trial)

    with ThreadPoolExecutor(options.jobs) as pool:
        todo = trials(study)
        for trial, ended in zip(todo, pool.map(worked, todo), strict=True):
            print(f"{trial.variant} fold {trial.fold}: {ended}", flush=True)
    print(f"{seconds_of_cpu() / 3600:.2f} hours of CPU")


if __name__ == "__main__":
    main()
