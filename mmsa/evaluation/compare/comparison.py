"""Several models on the same samples: which differences can be told from chance.

Runs of one configuration with several seeds are one contender: its score is the mean over seeds,
and a resample draws seeds as well as duplicate groups. R resamples, N samples.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mmsa.errors import UserError
from mmsa.evaluation.report.read_report import Reported
from mmsa.evaluation.scores.areas import area_scores, rankings
from mmsa.evaluation.scores.bootstrap import Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.evaluation.scores.paired_tests import holm, mcnemar, spread
from mmsa.evaluation.scores.score_table import (
    AREAS,
    Resampled,
    bootstrap_facts,
    resampled_scores,
    score_table,
)
from mmsa.evaluation.scores.sums import OVERALL, SMALLER_IS_BETTER, summands

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Contender:
    """The runs of one configuration, and their scores: of the sample, and resampled."""

    name: str
    runs: tuple[Reported, ...]
    values: dict[str, float | None]  # means over the runs
    resampled: Resampled


def compare(reports: Sequence[Reported], metric: str) -> dict[str, Any]:
    """The comparison as plain numbers, contenders sorted by `metric`, the best first.

    `contenders`: name, runs, seeds and for each score its value, interval and, over several seeds,
    `over_seeds`. `pairs`: every two of them, first the better: McNemar's test (of single runs) and
    for each score the difference with interval, p-value and Holm's correction over the pairs.

    The caller has checked that the reports are comparable and that there is such a metric.
    """
    bootstrap = Bootstrap.of(reports[0].groups)
    contenders = _contenders(reports, bootstrap)
    sign = 1 if metric.partition("/")[0] in SMALLER_IS_BETTER else -1
    contenders.sort(key=lambda one: (sign * (one.values[metric] or 0.0), one.name))
    identity = reports[0].identity
    return {
        "metric": metric,
        **{key: identity.get(key) for key in ("split", "dataset", "protocol", "label_names")},
        "samples_sha256": identity.get("samples_sha256"),
        "num_samples": len(reports[0].predictions.keys),
        "bootstrap": bootstrap_facts(bootstrap),
        "contenders": [_described(one) for one in contenders],
        "pairs": _pairs(contenders),
    }


def check_metric(metric: str, label_names: Sequence[str]) -> None:
    """Raise `UserError` where `metric` is no score of these classes, with the nearest."""
    of_classes = ("precision", "recall", "f1", *AREAS)
    names = [*OVERALL, *AREAS, *(f"{name}/{label}" for name in of_classes for label in label_names)]
    if metric not in names:
        near = difflib.get_close_matches(metric, names, n=1, cutoff=0.5)
        near = near or [name for name in names if metric in name]
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise UserError(f"--metric {metric} is no score; {hint}")


def _contenders(reports: Sequence[Reported], bootstrap: Bootstrap) -> list[Contender]:
    by_configuration: dict[Any, list[int]] = {}
    times: Counter[Any] = Counter()
    for i, report in enumerate(reports):
        # A report that says nothing of its configuration stands for itself; a second one with the
        # same seed (another checkpoint of the run) is no repetition, but another contender.
        configuration = report.identity.get("configuration") or i
        times[configuration, report.seed] += 1
        by_configuration.setdefault((configuration, times[configuration, report.seed]), []).append(
            i
        )
    values = [
        {name: score.value for name, score in score_table(one.predictions, None).items()}
        for one in reports
    ]
    resampled = _resampled(reports, bootstrap)
    found = []
    for place, members in enumerate(by_configuration.values()):
        draws = np.random.default_rng([bootstrap.seed, place])
        runs = tuple(reports[i] for i in members)
        name = runs[0].name if len(runs) == 1 else f"{runs[0].name} ({len(runs)} seeds)"
        found.append(
            Contender(
                name,
                runs,
                {score: _mean([values[i][score] for i in members]) for score in values[0]},
                _with_seeds([resampled[i] for i in members], draws),
            )
        )
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _resampled(reports: Sequence[Reported], bootstrap: Bootstrap) -> list[Resampled]:
    """Each report's scores on the same resamples."""
    names = reports[0].predictions.label_names
    found = resampled_scores([summands(one.predictions) for one in reports], bootstrap)
    ranked = [
        rankings(probabilities(one.predictions.logits), one.predictions.labels) for one in reports
    ]
    chunks: list[list[Resampled]] = [[] for _ in reports]
    for counts in bootstrap.sample_counts():
        for i, ranking in enumerate(ranked):
            chunks[i].append(area_scores(ranking, names, counts))
    for i, parts in enumerate(chunks):
        found[i] |= {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found


def _with_seeds(resampled: Sequence[Resampled], draws: np.random.Generator) -> Resampled:
    """Scores of a contender: in each resample the mean of as many runs, drawn with replacement."""
    if len(resampled) == 1:
        return resampled[0]
    most = max(len(values) for values in resampled[0].values())
    chosen = draws.integers(0, len(resampled), (most, len(resampled)))
    found = {}
    for name in resampled[0]:
        table = np.stack([one[name] for one in resampled], axis=1)  # (R, runs)
        found[name] = np.take_along_axis(table, chosen[: len(table)], axis=1).mean(axis=1)
    return found


def _described(one: Contender) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name, value in one.values.items():
        low, high = interval(one.resampled[name]) or (None, None)
        scores[name] = {"value": value, "low": low, "high": high}
        if len(one.runs) > 1 and value is not None:
            each = [score_table(run.predictions, None)[name].value for run in one.runs]
            scores[name]["over_seeds"] = spread([v for v in each if v is not None])
    return {
        "name": one.name,
        "runs": [run.name for run in one.runs],
        "seeds": [run.seed for run in one.runs],
        "weights_sha256": [run.identity["weights_sha256"] for run in one.runs],
        "scores": scores,
    }


def _pairs(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    pairs = list(combinations(contenders, 2))
    found: list[dict[str, Any]] = [{"first": a.name, "second": b.name} for a, b in pairs]
    tests = [_mcnemar(a, b) for a, b in pairs]
    corrected = iter(holm([test["p"] for test in tests if test]))
    for pair, test in zip(found, tests, strict=True):
        pair["mcnemar"] = test and {**test, "p_holm": next(corrected)}
        pair["differences"] = {}
    for name in contenders[0].values if contenders else ():
        rows = [_difference(a, b, name) for a, b in pairs]
        corrected = iter(holm([row["p"] for row in rows if row]))
        for pair, row in zip(found, rows, strict=True):
            pair["differences"][name] = row and {**row, "p_holm": next(corrected)}
    return found


def _mcnemar(a: Contender, b: Contender) -> dict[str, Any] | None:
    """Of two single runs; seeds have no common right and wrong."""
    if len(a.runs) > 1 or len(b.runs) > 1:
        return None
    right = [one.runs[0].predictions.predicted == one.runs[0].predictions.labels for one in (a, b)]
    first_only, second_only, p = mcnemar(right[0], right[1])
    return {"first_only": first_only, "second_only": second_only, "p": p}


def _difference(a: Contender, b: Contender, name: str) -> dict[str, Any] | None:
    first, second = a.values[name], b.values[name]
    if first is None or second is None:
        return None
    differences = a.resampled[name] - b.resampled[name]
    low, high = interval(differences) or (None, None)
    return {"value": first - second, "low": low, "high": high, "p": two_sided_p(differences)}
