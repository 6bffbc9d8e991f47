"""What the runs of a study say, by one split: validation, and test only after `--final`.

Without folds all runs see the same samples: variants are compared sample by sample, as by
`evaluate.py --compare`, with intervals over samples and over seeds.

With folds each fold has its own validation samples, and those of different folds may overlap. The
difference of two variants is then the mean of their differences on each fold, with the corrected
t-interval of Nadeau and Bengio (Machine Learning 52, 2003, section 3): for K folds, the variance of
the mean is (1 / K + n_validation / n_train) times that of the differences, because the training
sets overlap. Of test folds, which share no sample, the predictions are pooled and compared sample
by sample.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.study.question import Study
from launch.study.trials import Trial
from mmsa.errors import UserError
from mmsa.evaluation.compare.comparison import check_comparable, check_metric, compare
from mmsa.evaluation.compare.experiments import pooled_experiments
from mmsa.evaluation.report.files import read_metrics
from mmsa.evaluation.report.read_report import Report, read_report
from mmsa.evaluation.scores.paired_tests import SIGNIFICANT, holm
from mmsa.evaluation.scores.sums import smaller_is_better


def answer(study: Study, trials: Sequence[Trial]) -> dict[str, Any]:
    """The state of the study as JSON: variants (the best first), their differences, the winner.

    `variants`: name, settings, runs (seed, fold, score or None), mean and deviations (over folds,
    over seeds) of the metric on validation, `is_whole`: whether all its runs are done. `best`: the
    best variant of those that are whole, None while there are not two. `differences`: of each
    other variant to `compared_with`, with interval, p and Holm's correction. Raises `UserError`
    where the metric is unknown or reports do not belong together.
    """
    done = [trial for trial in trials if trial.is_scored("val")]
    if done:
        names = read_metrics(done[0].report("val"))["identity"]["label_names"]
        check_metric(study.metric, names)
    variants = [_variant(study, name, trials) for name in study.variants]
    sign = 1 if smaller_is_better(study.metric) else -1
    variants.sort(key=lambda one: _sort_key(one, sign))
    whole = [one["name"] for one in variants if one["is_whole"]]
    compared = study.compared_with
    found: dict[str, Any] = {
        "question": study.question,
        "metric": study.metric,
        "split": "val",
        "compared_with": compared,
        "variants": variants,
        "num_runs": len(trials),
        "num_done": len(done),
        "best": whole[0] if len(whole) > 1 or len(study.variants) == 1 == len(whole) else None,
        "differences": [],
    }
    if study.folds is None:
        reports = _reports(done, "val")
        if len({report.name for report in reports}) > 1:
            found["comparison"] = _compared(reports, study.metric)
            found["differences"] = _from_comparison(found["comparison"], study.metric, compared)
    else:
        found["differences"] = _over_folds(study, done, compared)
    return found


def final_answer(study: Study, trials: Sequence[Trial]) -> dict[str, Any]:
    """The comparison on the test split of `trials`, which have been evaluated on it.

    With folds, each experiment is one seed of a variant on all folds, pooled.
    """
    if study.folds is None:
        reports = _reports(trials, "test")
    else:
        reports = []
        for variant in dict.fromkeys(trial.variant for trial in trials):
            for seed in study.seeds:
                own = [t for t in trials if (t.variant, t.seed) == (variant, seed)]
                pooled = pooled_experiments(_reports(own, "test"))
                reports += [
                    Report(variant, r.directory, r.identity, r.predictions, r.groups)
                    for r in pooled
                ]
    return _compared(reports, study.metric)


def _variant(study: Study, name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    own = [trial for trial in trials if trial.variant == name]
    runs: list[dict[str, Any]] = [
        {
            "seed": trial.seed,
            "fold": trial.fold,
            "run": str(trial.run_dir),
            "score": _score(trial, study.metric, "val"),
        }
        for trial in own
    ]
    known = [run["score"] for run in runs if run["score"] is not None]
    return {
        "name": name,
        "settings": study.variants[name],
        "runs": runs,
        "mean": statistics.fmean(known) if known else None,
        "over_seeds": _deviation(runs, of="seed"),
        "over_folds": None if study.folds is None else _deviation(runs, of="fold"),
        "is_whole": len(known) == len(runs),
    }


def _deviation(runs: Sequence[Mapping[str, Any]], *, of: str) -> float | None:
    """Standard deviation between seeds (or folds), each the mean of its runs; None of one."""
    groups: dict[Any, list[float]] = {}
    for run in runs:
        if run["score"] is not None:
            groups.setdefault(run[of], []).append(run["score"])
    if len(groups) < 2:
        return None
    return statistics.stdev(statistics.fmean(scores) for scores in groups.values())


def _score(trial: Trial, metric: str, split: str) -> float | None:
    if not trial.is_scored(split):
        return None
    scores = read_metrics(trial.report(split))["scores"]
    value = scores[metric]["value"] if metric in scores else None
    return None if value is None or not math.isfinite(value) else float(value)


def _sort_key(variant: Mapping[str, Any], sign: int) -> tuple[bool, float, str]:
    mean = variant["mean"]
    if mean is None:
        return True, 0.0, variant["name"]
    return False, sign * mean, variant["name"]


def _reports(trials: Sequence[Trial], split: str) -> list[Report]:
    """The reports of runs under the names of their variants, which are their configurations."""
    found = []
    for trial in trials:
        report = read_report(trial.report(split), trial.variant)
        # The same for all folds and seeds, whatever version evaluated them.
        report.identity["configuration"] = trial.variant
        report.identity["seed"] = trial.seed
        found.append(report)
    return found


def _compared(reports: Sequence[Report], metric: str) -> dict[str, Any]:
    identities = [(f"{r.name}, seed {r.seed}", r.identity) for r in reports]
    # A setting without effect, or a trial of a search with the default's settings.
    check_comparable(identities, same_weights=True)
    comparison = compare(reports, metric)
    for contender in comparison["contenders"]:
        contender["variant"] = contender["runs"][0]
    return comparison


def _from_comparison(
    comparison: Mapping[str, Any], metric: str, compared_with: str
) -> list[dict[str, Any]]:
    """The differences of the others to one variant, from all pairs; signs as other minus it."""
    variant_of = {one["name"]: one["variant"] for one in comparison["contenders"]}
    found = []
    for pair in comparison["pairs"]:
        first, second = variant_of[pair["first"]], variant_of[pair["second"]]
        difference = pair["differences"][metric]
        if compared_with not in (first, second) or difference is None:
            continue
        sign = 1 if second == compared_with else -1
        low, high = difference["low"], difference["high"]
        found.append(
            {
                "variant": first if sign == 1 else second,
                "value": sign * difference["value"],
                "low": low if sign == 1 or high is None else -high,
                "high": high if sign == 1 or low is None else -low,
                "p": difference["p"],
                "p_holm": difference["p_holm"],
                "is_significant": difference["p_holm"] < SIGNIFICANT,
                "caution": pair["caution"],
            }
        )
    return found


def _over_folds(study: Study, done: Sequence[Trial], compared_with: str) -> list[dict[str, Any]]:
    """The corrected t-interval of each variant's difference, on the folds that both have."""
    scores: dict[str, dict[int, list[float]]] = {}
    sizes: list[float] = []
    for trial in done:
        score = _score(trial, study.metric, "val")
        if score is not None and trial.fold is not None:
            scores.setdefault(trial.variant, {}).setdefault(trial.fold, []).append(score)
            sizes.append(_validation_over_train(trial))
    rows = []
    theirs = scores.get(compared_with, {})
    for name in study.variants:
        folds = sorted(scores.get(name, {}).keys() & theirs.keys())
        if name == compared_with or not folds:
            continue
        mine = scores[name]
        each = [statistics.fmean(mine[f]) - statistics.fmean(theirs[f]) for f in folds]
        row: dict[str, Any] = {"variant": name, "value": statistics.fmean(each), "folds": folds}
        rows.append(row | corrected_interval(each, statistics.fmean(sizes)))
    known = [row for row in rows if row["p"] is not None]
    for row, p in zip(known, holm([row["p"] for row in known]), strict=True):
        row["p_holm"] = p
    for row in rows:
        row.setdefault("p_holm", None)
        row["is_significant"] = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
        row["caution"] = None
    return rows


def corrected_interval(differences: Sequence[float], ratio: float) -> dict[str, float | None]:
    """`low` and `high` of the 95 % interval of the mean, and `p` of no difference.

    `differences` (K,) on the folds, `ratio` = n_validation / n_train. None for fewer than two
    folds. Source: Nadeau and Bengio (2003), equation for the corrected resampled t-test.
    """
    from scipy.stats import t

    count = len(differences)
    if count < 2:
        return {"low": None, "high": None, "p": None}
    mean, variance = statistics.fmean(differences), statistics.variance(differences)
    error = math.sqrt((1 / count + ratio) * variance)
    half = float(t.ppf(0.975, count - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, count - 1)) if error > 0 else float(mean == 0)
    return {"low": mean - half, "high": mean + half, "p": p}


def _validation_over_train(trial: Trial) -> float:
    from mmsa.data.manifest import load_manifest

    assert trial.shards is not None
    manifest = load_manifest(str(trial.shards))
    sizes = [manifest.split(name).num_samples for name in ("val", "train")]
    return sizes[0] / sizes[1]


def best_variant(found: Mapping[str, Any], out: Path) -> str:
    """The winner by validation. Raises `UserError` while runs of the study are missing."""
    missing = found["num_runs"] - found["num_done"]
    if found["best"] is None or missing:
        raise UserError(
            f"{missing} of {found['num_runs']} runs are not done, and "
            "the winner is chosen among all of them before test is opened. Let them end "
            f"(the same command without --final), or leave their variants out of the study; their "
            f"state: python -m launch study STUDY.yaml --out {out} --status"
        )
    return str(found["best"])
