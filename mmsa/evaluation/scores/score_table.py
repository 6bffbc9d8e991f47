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
from mmsa.evaluation.scores.sums import Summands, scores_of_sums, summands

AREAS = ("roc_auc", "pr_auc")


@dataclass(frozen=True)
class Score:
    """A score and its 95 % interval; None if undefined for lack of samples."""

    value: float | None
    low: float | None = None
    high: float | None = None


ScoreTable = dict[str, Score]
Resampled = dict[str, NDArray[np.float64]]  # flat name of a score -> (R,)


def score_table(
    predictions: Predictions,
    bootstrap: Bootstrap | None,
    *,
    areas: bool = True,
    temperature: float = 1.0,
    resampled: Resampled | None = None,
) -> ScoreTable:
    """Every score by its flat name; without `bootstrap` there are no intervals.

    `resampled` is the result of `resampled_scores` for these predictions, if the caller has it.
    `areas` adds `roc_auc` and `pr_auc`, whose intervals use only the first resamples. They hardly
    depend on `temperature`: not at all for two classes, where it is a monotone function.
    """
    contributions = summands(predictions, temperature=temperature)
    values = dict(
        scores_of_sums(contributions.values.sum(axis=0, keepdims=True), contributions.label_names)
    )
    drawn: Resampled = {}
    if bootstrap is not None:
        drawn |= resampled or resampled_scores([contributions], bootstrap)[0]
    if areas:
        probs = probabilities(np.asarray(predictions.logits, dtype=np.float64) / temperature)
        ranked = rankings(probs, predictions.labels)
        names = contributions.label_names
        values |= area_scores(ranked, names, np.ones((1, len(predictions.labels)), dtype=np.int64))
        if bootstrap is not None:
            chunks = [area_scores(ranked, names, counts) for counts in bootstrap.sample_counts()]
            drawn |= {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
    return {name: _score(values[name], drawn.get(name)) for name in values}


def resampled_scores(several: Sequence[Summands], bootstrap: Bootstrap) -> list[Resampled]:
    """The scores, each (R,), of several sets of predictions, all on the same resamples."""
    width = several[0].values.shape[1]
    sums = bootstrap.sums(np.concatenate([one.values for one in several], axis=1))
    return [
        scores_of_sums(sums[:, i * width : (i + 1) * width], one.label_names)
        for i, one in enumerate(several)
    ]


def _score(value: NDArray[np.float64], resampled: NDArray[np.float64] | None) -> Score:
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
