"""All that a report says of one model on one split, as plain numbers: the content of metrics.json.

Pure: predictions, facts and settings in, a dictionary out, the same at any world size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsa.calibration import Calibration
from mmsa.evaluation.floors.fitting import Floors
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.inputs.slices import part, slice_masks
from mmsa.evaluation.scores.bootstrap import Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.calibration import reliability
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics
from mmsa.evaluation.scores.score_table import (
    Resampled,
    as_json,
    bootstrap_facts,
    resampled_scores,
    score_table,
)
from mmsa.evaluation.scores.sums import OVERALL, summands

# A proper score judges probabilities, which a temperature changes; it changes no other score.
PROPER = ("loss", "brier", "ece")
LEAD = ("accuracy", "macro_f1", "weighted_f1")
SLICE_SCORES = ("accuracy", "macro_f1", "weighted_f1", "loss")
SLICE_RESAMPLES = 2_000


def findings(
    predictions: Predictions,
    facts: Sequence[SampleFacts],
    *,
    seen: SeenBefore,
    calibration: Calibration | None,
    floor: Floors | None,
) -> dict[str, Any]:
    """The content of `metrics.json` but for the identity; floats are not rounded yet."""
    bootstrap = Bootstrap.of(groups_of(facts))
    found = compute_metrics(predictions)
    # All on the same resamples, which are drawn once.
    temperature = 1.0 if calibration is None else calibration.temperature
    tables = [summands(predictions), summands(predictions, temperature=temperature)]
    tables += [] if floor is None else [summands(floor.tfidf)]
    drawn = resampled_scores(tables, bootstrap)
    found["scores"] = as_json(score_table(predictions, bootstrap, resampled=drawn[0]))
    found["bootstrap"] = bootstrap_facts(bootstrap)
    found["leaks"] = _leaks(predictions, bootstrap, seen)
    found["floors"] = None
    if floor is not None:
        found["floors"] = _floors(found["scores"], floor, drawn[0], drawn[2])
    found["calibration"] = _calibration(predictions, bootstrap, calibration, drawn[1])
    found["slices"] = _slices(predictions, facts)
    return found


def _leaks(predictions: Predictions, bootstrap: Bootstrap, seen: SeenBefore) -> dict[str, Any]:
    """Counts of clean and leaked samples; the scores of each where there are both."""
    if seen.leaked is None:
        return {"known": False, "why": seen.why_unknown}
    found: dict[str, Any] = {"known": True}
    for name, mask in (("clean", ~seen.leaked), ("leaked", seen.leaked)):
        found[name] = {"num_samples": int(mask.sum())}
        if mask.any() and not mask.all():
            within = Bootstrap.of(bootstrap.groups[mask])
            table = score_table(part(predictions, mask), within, areas=False)
            found[name]["scores"] = as_json({score: table[score] for score in OVERALL})
    return found


def _floors(
    scores: Mapping[str, Any], floor: Floors, ours: Resampled, theirs: Resampled
) -> dict[str, Any]:
    """The floors' scores, and by how much the model is better than TF-IDF, on the same samples.

    `scores` are the model's; `ours` and `theirs` the model's and TF-IDF's on the same resamples.
    """
    majority, tfidf = (as_json(score_table(one, None)) for one in (floor.majority, floor.tfidf))
    lead = {}
    for name in LEAD:
        differences = ours[name] - theirs[name]
        low, high = interval(differences) or (None, None)
        value = scores[name]["value"] - tfidf[name]["value"]
        lead[name] = {"value": value, "low": low, "high": high, "p": two_sided_p(differences)}
    return {
        "majority": {"scores": majority},
        "tfidf": {"scores": tfidf, "c": floor.c},
        "lead_over_tfidf": lead,
    }


def _calibration(
    predictions: Predictions,
    bootstrap: Bootstrap,
    calibration: Calibration | None,
    drawn: Resampled,
) -> dict[str, Any]:
    found: dict[str, Any] = {"temperature": None, "bins": reliability(predictions)}
    if calibration is not None:
        temperature = calibration.temperature
        table = score_table(
            predictions, bootstrap, areas=False, temperature=temperature, resampled=drawn
        )
        found["temperature"] = temperature
        found["fitted_on"] = calibration.fitted_on
        found["scores"] = as_json({name: table[name] for name in PROPER})
        found["bins_with_temperature"] = reliability(predictions, temperature)
    return found


def _slices(predictions: Predictions, facts: Sequence[SampleFacts]) -> dict[str, Any]:
    """Slice -> `num_samples` and `SLICE_SCORES` with intervals, resampled within the slice."""
    groups = groups_of(facts)
    found = {}
    for name, mask in slice_masks(facts).items():
        bootstrap = Bootstrap.of(groups[mask], resamples=SLICE_RESAMPLES)
        table = score_table(part(predictions, mask), bootstrap, areas=False)
        scores = as_json({score: table[score] for score in SLICE_SCORES})
        found[name] = {"num_samples": int(mask.sum()), "scores": scores}
    return found
