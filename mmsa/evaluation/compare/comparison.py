"""Compare several models on the same samples: which differences are more than chance?

Runs of one configuration with different seeds are one contender: its score is the mean over seeds,
and a resample draws seeds as well as duplicate groups. R resamples, N samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.report.read_report import Report
from mmsa.evaluation.scores.bootstrap import Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.paired_tests import SIGNIFICANT, holm, mcnemar, spread, verdict_caution
from mmsa.evaluation.scores.resampled import Resampled, resampled_scores
from mmsa.evaluation.scores.score_table import (
    AREAS,
    bootstrap_facts,
    resampled_areas,
    score_table,
)
from mmsa.evaluation.scores.sums import OVERALL, smaller_is_better, summands
from mmsa.foundation.near_names import did_you_mean

Values = dict[str, float | None]  # flat name of a score -> its value, None if undefined


@dataclass(frozen=True)
class Contender:
    """The runs of one configuration with their scores, on the samples and resampled."""

    name: str
    runs: tuple[Report, ...]
    of_runs: tuple[Values, ...]
    values: Values  # means over the runs
    resampled: Resampled


def compare(reports: Sequence[Report], metric: str) -> dict[str, Any]:
    """The comparison as numbers, contenders sorted by `metric`, the best first.

    `contenders`: name, runs, seeds, and for each score its value, interval and, with several seeds,
    `over_seeds`. `pairs`: every pair, the better one first: McNemar's test (of single runs), for
    each score the difference with interval, p-value and Holm's correction over the pairs, and
    `caution`: why a significant difference in `metric` may be none, or None.

    The caller has called `check_comparable` and `check_metric`.
    """
    bootstrap = Bootstrap.of(reports[0].groups)
    contenders = _contenders(reports, bootstrap)
    sign = 1 if smaller_is_better(metric) else -1
    contenders.sort(key=lambda c: (sign * (c.values[metric] or 0.0), c.name))
    identity = reports[0].identity
    return {
        "metric": metric,
        **{key: identity.get(key) for key in ("split", "dataset", "protocol", "label_names")},
        "samples_sha256": identity.get("samples_sha256"),
        "num_samples": len(reports[0].predictions.keys),
        "bootstrap": bootstrap_facts(bootstrap),
        "contenders": [_as_json(contender) for contender in contenders],
        "pairs": _pairs(contenders, metric, bootstrap.num_groups),
    }


def check_comparable(
    identities: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    what: str = "compared",
    same_weights: bool = False,
) -> None:
    """Raise `UserError` unless all (name, identity) belong to one split of one protocol.

    They must also have the classes in the same order and, if known, the same samples. `what` is
    what cannot be done with them otherwise. Two of the same weights are one that was named twice,
    unless `same_weights`: two trainings may come to the same.
    """
    first_name, first = identities[0]
    for name, other in identities[1:]:
        for part, key in (
            ("split", "split"),
            ("data set", "dataset"),
            ("protocol", "protocol"),
            ("class order", "label_names"),
            ("sample set (keys and labels)", "samples_sha256"),
        ):
            ours, theirs = first.get(key), other.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise UserError(
                    f"{first_name} and {name} cannot be {what}: the {part} of one is "
                    f"{_shown(ours)}, of the other {_shown(theirs)}. Their scores belong to "
                    "different tasks; evaluate both on the same split of the same packed data"
                )
    names: dict[str, str] = {}
    for name, identity in [] if same_weights else identities:
        weights = str(identity["weights_sha256"])
        if weights in names:
            raise UserError(f"{names[weights]} and {name} are the same weights; name each once")
        names[weights] = name


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('name')} ({str(value.get('hash'))[:12]})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)[:40]


def check_metric(metric: str, label_names: Sequence[str]) -> None:
    """Raise `UserError` if `metric` is not a score of these classes, with the nearest name."""
    of_classes = ("precision", "recall", "f1", *AREAS)
    names = [*OVERALL, *AREAS, *(f"{name}/{label}" for name in of_classes for label in label_names)]
    if metric not in names:
        within = [name for name in names if metric in name]
        hint = did_you_mean(metric, names) or (
            f"did you mean {within[0]}?" if within else f"known: {', '.join(names)}"
        )
        raise UserError(f"--metric {metric} is not a score; {hint}")


def _contenders(reports: Sequence[Report], bootstrap: Bootstrap) -> list[Contender]:
    by_configuration: dict[Any, list[int]] = {}
    times: Counter[Any] = Counter()
    for i, report in enumerate(reports):
        # A report without a configuration is a contender of its own, and so is a second one with
        # the same seed (another checkpoint of the run), which is not a repetition.
        configuration = report.identity.get("configuration") or i
        times[configuration, report.seed] += 1
        by_configuration.setdefault((configuration, times[configuration, report.seed]), []).append(
            i
        )
    values = [
        {name: score.value for name, score in score_table(report.predictions, None).items()}
        for report in reports
    ]
    resampled = _resampled(reports, bootstrap)
    contenders = []
    for place, members in enumerate(by_configuration.values()):
        draws = np.random.default_rng([bootstrap.seed, place])
        runs = tuple(reports[i] for i in members)
        name = runs[0].name if len(runs) == 1 else f"{runs[0].name} ({len(runs)} seeds)"
        contenders.append(
            Contender(
                name,
                runs,
                tuple(values[i] for i in members),
                {score: _mean([values[i][score] for i in members]) for score in values[0]},
                _with_seeds([resampled[i] for i in members], draws),
            )
        )
    return contenders


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _resampled(reports: Sequence[Report], bootstrap: Bootstrap) -> list[Resampled]:
    """The scores of each report on the same resamples."""
    resampled = resampled_scores([summands(report.predictions) for report in reports], bootstrap)
    areas = resampled_areas([report.predictions for report in reports], bootstrap)
    return [drawn.with_ready(found) for drawn, found in zip(resampled, areas, strict=True)]


def _with_seeds(resampled: Sequence[Resampled], draws: np.random.Generator) -> Resampled:
    """Scores of a contender: each resample is a mean over runs drawn with replacement."""
    if len(resampled) == 1:
        return resampled[0]
    most = max(len(resampled[0][name]) for name in ("accuracy", *AREAS))
    chosen = draws.integers(0, len(resampled), (most, len(resampled)))

    def mean(name: str) -> NDArray[np.float64]:
        table = np.stack([run[name] for run in resampled], axis=1)  # (R, runs)
        return np.asarray(np.take_along_axis(table, chosen[: len(table)], axis=1).mean(axis=1))

    return Resampled({}, {name: partial(mean, name) for name in resampled[0]})


def _as_json(contender: Contender) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name, value in contender.values.items():
        low, high = interval(contender.resampled[name]) or (None, None)
        scores[name] = {"value": value, "low": low, "high": high}
        if len(contender.runs) > 1 and value is not None:
            each = [values[name] for values in contender.of_runs]
            scores[name]["over_seeds"] = spread([v for v in each if v is not None])
    return {
        "name": contender.name,
        "runs": [run.name for run in contender.runs],
        "seeds": [run.seed for run in contender.runs],
        "weights_sha256": [run.identity["weights_sha256"] for run in contender.runs],
        "scores": scores,
    }


def _pairs(contenders: Sequence[Contender], metric: str, num_groups: int) -> list[dict[str, Any]]:
    pairs = list(combinations(contenders, 2))
    described: list[dict[str, Any]] = [{"first": a.name, "second": b.name} for a, b in pairs]
    tests = [_mcnemar(a, b) for a, b in pairs]
    corrected = iter(holm([test["p"] for test in tests if test]))
    for pair, test in zip(described, tests, strict=True):
        pair["mcnemar"] = test and {**test, "p_holm": next(corrected)}
        pair["differences"] = {}
    for name in contenders[0].values if contenders else ():
        rows = [_difference(a, b, name) for a, b in pairs]
        corrected = iter(holm([row["p"] for row in rows if row]))
        for pair, row in zip(described, rows, strict=True):
            pair["differences"][name] = row and {**row, "p_holm": next(corrected)}
    for pair, (a, b) in zip(described, pairs, strict=True):
        pair["caution"] = None
        if distinguishable(pair, metric):
            exact = pair["mcnemar"] and pair["mcnemar"]["p_holm"]
            pair["caution"] = verdict_caution(metric, num_groups, _discordant(a, b), exact)
    return described


def distinguishable(pair: Mapping[str, Any], metric: str) -> bool:
    """Whether the difference of the pair is significant after Holm's correction."""
    difference = pair["differences"][metric]
    return difference is not None and bool(difference["p_holm"] < SIGNIFICANT)


def _discordant(a: Contender, b: Contender) -> float:
    """How many samples only one of the two has right; the mean over the pairs of their runs."""
    right = [
        [run.predictions.predicted == run.predictions.labels for run in contender.runs]
        for contender in (a, b)
    ]
    counts = [int((first != second).sum()) for first in right[0] for second in right[1]]
    return sum(counts) / len(counts)


def _mcnemar(a: Contender, b: Contender) -> dict[str, Any] | None:
    """Of two single runs; several seeds have no single answer per sample."""
    if len(a.runs) > 1 or len(b.runs) > 1:
        return None
    right = [c.runs[0].predictions.predicted == c.runs[0].predictions.labels for c in (a, b)]
    first_only, second_only, p = mcnemar(right[0], right[1])
    return {"first_only": first_only, "second_only": second_only, "p": p}


def _difference(a: Contender, b: Contender, name: str) -> dict[str, Any] | None:
    first, second = a.values[name], b.values[name]
    if first is None or second is None:
        return None
    differences = a.resampled[name] - b.resampled[name]
    low, high = interval(differences) or (None, None)
    return {"value": first - second, "low": low, "high": high, "p": two_sided_p(differences)}
