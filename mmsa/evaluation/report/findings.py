"""Everything a report says about one model on one split, as numbers: the content of metrics.json.

Pure functions: predictions, facts and settings in, a dictionary out, the same at any world size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mmsa.calibration import Calibration, temperature_of
from mmsa.evaluation.floors.fitting import Floors
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.inputs.seen_before import SeenBefore
from mmsa.evaluation.inputs.slices import part, slice_masks
from mmsa.evaluation.scores.bootstrap import Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.calibration import reliability
from mmsa.evaluation.scores.confusions import class_cautions
from mmsa.evaluation.scores.metrics import Predictions, compute_metrics
from mmsa.evaluation.scores.paired_tests import mcnemar, verdict_caution
from mmsa.evaluation.scores.resampled import Resampled, resampled_scores
from mmsa.evaluation.scores.score_names import title_of
from mmsa.evaluation.scores.score_table import as_json, bootstrap_facts, score_table
from mmsa.evaluation.scores.sums import OVERALL, summands

# Scores of the probabilities; these are the only scores that a temperature changes.
PROPER = ("loss", "brier", "ece")
LEAD = ("accuracy", "macro_f1", "weighted_f1")
SLICE_SCORES = ("accuracy", "macro_f1", "weighted_f1", "loss")
SLICE_RESAMPLES = 2_000


def compute_findings(
    predictions: Predictions,
    facts: Sequence[SampleFacts],
    *,
    seen: SeenBefore,
    calibration: Calibration | None,
    floors: Floors | None,
) -> dict[str, Any]:
    """The content of `metrics.json` without the identity; floats are not rounded yet."""
    bootstrap = Bootstrap.of(groups_of(facts))
    findings = compute_metrics(predictions)
    # All scores are computed on the same resamples, which are drawn once.
    temperature = temperature_of(calibration)
    tables = [summands(predictions), summands(predictions, temperature=temperature)]
    tables += [] if floors is None else [summands(floors.tfidf)]
    drawn = resampled_scores(tables, bootstrap, with_classes=1)
    findings["scores"] = as_json(score_table(predictions, bootstrap, resampled=drawn[0]))
    findings["bootstrap"] = bootstrap_facts(bootstrap)
    findings["leaks"] = _leaks(predictions, bootstrap, seen)
    findings["floors"] = None
    if floors is not None:
        findings["floors"] = _floors(findings["scores"], floors, drawn[0], drawn[2])
        _add_caution(findings["floors"], predictions, floors, bootstrap)
    findings["calibration"] = _calibration(predictions, bootstrap, calibration, drawn[1])
    findings["slices"] = _slices(predictions, facts)
    # Only where there is something to say.
    cautions = class_cautions(findings["confusion_matrix"], predictions.label_names)
    cautions += _interval_cautions(findings["scores"])
    if cautions:
        findings["cautions"] = cautions
    return findings


def _interval_cautions(scores: Mapping[str, Any]) -> list[str]:
    """A sentence if intervals of macro scores do not contain the score itself."""
    apart = [
        title_of(name)
        for name in ("macro_f1", "macro_precision", "macro_recall")
        if not scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    ]
    if not apart:
        return []
    return [
        f"the interval does not contain the value of {', '.join(apart)}: resamples miss classes "
        "with very few samples, which then count as 0, so these intervals are too low"
    ]


def _leaks(predictions: Predictions, bootstrap: Bootstrap, seen: SeenBefore) -> dict[str, Any]:
    """Counts of clean and leaked samples, and the scores of each if there are both."""
    if seen.leaked is None:
        return {"known": False, "why": seen.why_unknown}
    leaks: dict[str, Any] = {"known": True}
    if seen.by_content:
        leaks["compared"] = "equal texts and pictures"
    for name, mask in (("clean", ~seen.leaked), ("leaked", seen.leaked)):
        leaks[name] = {"num_samples": int(mask.sum())}
        if mask.any() and not mask.all():
            within = Bootstrap.of(bootstrap.groups[mask])
            table = score_table(part(predictions, mask), within, areas=False, names=OVERALL)
            leaks[name]["scores"] = as_json(table)
    return leaks


def _floors(
    scores: Mapping[str, Any],
    floors: Floors,
    model_resampled: Resampled,
    tfidf_resampled: Resampled,
) -> dict[str, Any]:
    """The floors' scores, and by how much the model beats TF-IDF on the same samples.

    `scores` are the model's on the samples; the model and TF-IDF share their resamples.
    """
    majority = as_json(score_table(floors.majority, None))
    tfidf = as_json(score_table(floors.tfidf, None))
    lead = {}
    for name in LEAD:
        differences = model_resampled[name] - tfidf_resampled[name]
        low, high = interval(differences) or (None, None)
        value = scores[name]["value"] - tfidf[name]["value"]
        lead[name] = {"value": value, "low": low, "high": high, "p": two_sided_p(differences)}
    found = {
        "majority": {"scores": majority},
        "tfidf": {"scores": tfidf, "c": floors.c},
        "lead_over_tfidf": lead,
    }
    if floors.fitted_on is not None:  # on other data than the model was trained on
        found["fitted_on"] = asdict(floors.fitted_on)
    return found


def _add_caution(
    found: dict[str, Any], predictions: Predictions, floors: Floors, bootstrap: Bootstrap
) -> None:
    """Add `caution` to `found` if a lead over TF-IDF is significant but rests on few samples."""
    if all(lead["low"] <= 0 <= lead["high"] for lead in found["lead_over_tfidf"].values()):
        return
    right = [one.predicted == one.labels for one in (predictions, floors.tfidf)]
    first_only, second_only, p = mcnemar(*right)
    caution = verdict_caution(LEAD[0], bootstrap.num_groups, first_only + second_only, p)
    if caution:
        found["caution"] = caution


def _calibration(
    predictions: Predictions,
    bootstrap: Bootstrap,
    calibration: Calibration | None,
    drawn: Resampled,
) -> dict[str, Any]:
    content: dict[str, Any] = {"temperature": None, "bins": reliability(predictions)}
    if calibration is not None and calibration.temperature is None:
        content["why_none"] = calibration.why_none
    elif calibration is not None:
        temperature = temperature_of(calibration)
        table = score_table(
            *(predictions, bootstrap), areas=False, temperature=temperature, resampled=drawn,
            names=PROPER,
        )  # fmt: skip
        content["temperature"] = temperature
        content["fitted_on"] = calibration.fitted_on
        content["scores"] = as_json(table)
        content["bins_with_temperature"] = reliability(predictions, temperature)
    return content


def _slices(predictions: Predictions, facts: Sequence[SampleFacts]) -> dict[str, Any]:
    """Slice -> `num_samples`, and `SLICE_SCORES` with intervals resampled within the slice."""
    groups = groups_of(facts)
    slices = {}
    for name, mask in slice_masks(facts).items():
        bootstrap = Bootstrap.of(groups[mask], resamples=SLICE_RESAMPLES)
        table = score_table(part(predictions, mask), bootstrap, areas=False, names=SLICE_SCORES)
        slices[name] = {"num_samples": int(mask.sum()), "scores": as_json(table)}
    return slices
