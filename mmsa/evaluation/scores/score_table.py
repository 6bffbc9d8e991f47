"""The scores of a set of predictions, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.scores.areas import area_scores, rankings
from mmsa.evaluation.scores.bootstrap import LEVEL, Bootstrap, interval
from mmsa.evaluation.scores.metrics import Predictions, probabilities
from mmsa.evaluation.scores.resampled import Resampled, resampled_scores
from mmsa.evaluation.scores.sums import scores_of_sums, summands

Floats = NDArray[np.float64]

AREAS = ("roc_auc", "pr_auc")


@dataclass(frozen=True)
class Score:
    """A score and its 95 % interval; None if undefined for lack of samples."""

    value: float | None
    low: float | None = None
    high: float | None = None


ScoreTable = dict[str, Score]


def score_table(
    predictions: Predictions,
    bootstrap: Bootstrap | None,
    *,
    areas: bool = True,
    temperature: float = 1.0,
    resampled: Resampled | None = None,
    names: Sequence[str] | None = None,
) -> ScoreTable:
    """Every score by its flat name, or those in `names`; without `bootstrap` no intervals.

    `resampled` is the result of `resampled_scores` for these predictions, if the caller has it.
    `areas` adds `roc_auc` and `pr_auc`, whose intervals use only the first resamples. They hardly
    depend on `temperature`: not at all for two classes, where it is a monotone function.
    """
    contributions = summands(predictions, temperature=temperature)
    values = scores_of_sums(contributions.total(), contributions.label_names)
    if names is not None:
        values = {name: values[name] for name in names}
    drawn: Mapping[str, NDArray[np.float64]] = {}
    if bootstrap is not None:
        drawn = resampled or resampled_scores([contributions], bootstrap)[0]
    table = {name: _score(value, drawn.get(name)) for name, value in values.items()}
    if areas:
        names_of_classes = contributions.label_names
        ranked = rankings(probabilities(predictions.logits, temperature), predictions.labels)
        once = np.ones((1, len(predictions.labels)), dtype=np.int64)
        [of_areas] = area_scores(ranked, names_of_classes, lambda: [once])
        drawn = {}
        if bootstrap is not None:
            [drawn] = resampled_areas([predictions], bootstrap, temperature)
        table |= {name: _score(value, drawn.get(name)) for name, value in of_areas.items()}
    return table


def resampled_areas(
    several: Sequence[Predictions], bootstrap: Bootstrap, temperature: float = 1.0
) -> list[dict[str, Floats]]:
    """The areas of several sets of predictions, all on the same resamples, the first of all."""
    ranked = (
        ranking
        for one in several
        for ranking in rankings(probabilities(one.logits, temperature), one.labels)
    )
    return area_scores(ranked, several[0].label_names, bootstrap.sample_counts)


def _score(value: Floats, resampled: Floats | None) -> Score:
    if math.isnan(value[0]):
        return Score(None)
    low_high = None if resampled is None else interval(resampled)
    return Score(float(value[0]), *(low_high or (None, None)))


def as_json(table: Mapping[str, Score]) -> dict[str, Any]:
    """name -> {value, low, high}; the last two only if there is an interval."""
    return {
        name: {
            key: part for key, part in asdict(score).items() if key == "value" or part is not None
        }
        for name, score in table.items()
    }


def bootstrap_facts(bootstrap: Bootstrap) -> dict[str, Any]:
    """How the intervals were computed, for `metrics.json`."""
    return {
        "method": "percentile bootstrap over duplicate groups",
        "level": LEVEL,
        "resamples": bootstrap.resamples,
        "resamples_of_areas": bootstrap.area_resamples,
        "num_groups": bootstrap.num_groups,
        "seed": bootstrap.seed,
    }
