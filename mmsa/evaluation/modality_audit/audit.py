"""Does the picture help? One checkpoint on the same samples with a modality masked or exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.inputs.slices import slice_masks
from mmsa.evaluation.modality_audit.changed_inputs import Change
from mmsa.evaluation.scores.bootstrap import AREA_RESAMPLES, Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.evaluation.scores.paired_tests import holm
from mmsa.evaluation.scores.score_names import columns, title_of, with_interval
from mmsa.evaluation.scores.score_table import (
    as_json,
    bootstrap_facts,
    resampled_scores,
    score_table,
)
from mmsa.evaluation.scores.sums import OVERALL, Summands, scores_of_sums, summands

AUDIT_NAME = "modality_audit.json"
LOST = ("accuracy", "macro_f1", "weighted_f1", "loss")  # scores whose loss is told
SIGNIFICANT = 0.05
# What taking the picture away, or a wrong one, costs.
OF_THE_IMAGE = (Change.TEXT_ONLY, Change.SHUFFLED_IMAGES)


def check_modalities(subject: EvalTarget) -> None:
    """Raise `UserError` where the model does not read both texts and pictures."""
    preprocessing = subject.export.preprocessing
    if preprocessing.image is None or preprocessing.max_tokens is None:
        only = "texts" if preprocessing.image is None else "pictures"
        raise UserError(
            f"--modality-audit asks what each modality adds, and {subject.name} reads {only} "
            "alone; compare it with another model by --compare"
        )
    if len(subject.reader) < 3:
        raise UserError(
            f"--modality-audit exchanges texts and pictures between samples, and the split has "
            f"{len(subject.reader)}; at least 3 are needed"
        )


def audit(
    whole: Predictions, changed: Mapping[Change, Predictions], facts: Sequence[SampleFacts]
) -> dict[str, Any]:
    """Scores under each change, what it costs, and what the picture adds on each slice.

    `whole` and `changed` are predictions of the same samples. A cost is the score as it is minus
    the score under the change, by paired bootstrap, p-values by Holm's rule over the changes.
    """
    groups = groups_of(facts)
    bootstrap = Bootstrap.of(groups)
    found: dict[str, Any] = {"bootstrap": bootstrap_facts(bootstrap), "changes": {}, "slices": {}}
    costs = _costs(whole, changed, bootstrap)
    for change, predictions in changed.items():
        table = score_table(predictions, bootstrap, areas=False)
        scores = as_json({name: table[name] for name in OVERALL})
        found["changes"][str(change)] = {"scores": scores, "costs": costs[change]}
    table = score_table(whole, bootstrap, areas=False)
    found["whole"] = {"scores": as_json({name: table[name] for name in OVERALL})}
    of_the_picture = {change: changed[change] for change in OF_THE_IMAGE}
    for name, mask in slice_masks(facts).items():
        within = Bootstrap.of(groups[mask], resamples=AREA_RESAMPLES)
        found["slices"][name] = {
            "num_samples": int(mask.sum()),
            "costs": {
                str(change): cost
                for change, cost in _costs(whole, of_the_picture, within, mask).items()
            },
        }
    return found


def _costs(
    whole: Predictions,
    changed: Mapping[Change, Predictions],
    bootstrap: Bootstrap,
    mask: NDArray[np.bool_] | None = None,
) -> dict[Change, dict[str, Any]]:
    """Change -> score -> cost with interval and p-value, over the samples in `mask`."""
    rows = slice(None) if mask is None else mask
    names = whole.label_names
    tables = [Summands(summands(one).values[rows], names) for one in (whole, *changed.values())]
    resampled = resampled_scores(tables, bootstrap)
    points = [scores_of_sums(table.values.sum(axis=0, keepdims=True), names) for table in tables]
    found: dict[Change, dict[str, Any]] = {change: {} for change in changed}
    for score in LOST:
        p_values = []
        for i, change in enumerate(changed, start=1):
            differences = resampled[0][score] - resampled[i][score]
            low, high = interval(differences) or (None, None)
            p_values.append(two_sided_p(differences))
            value = float(points[0][score][0] - points[i][score][0])
            found[change][score] = {"value": value, "low": low, "high": high, "p": p_values[-1]}
        for change, p_holm in zip(changed, holm(p_values), strict=True):
            found[change][score]["p_holm"] = p_holm
    return found


def audit_text(found: Mapping[str, Any]) -> str:
    """The audit as tables, and the answer in words."""
    rows = [["modality audit", "weighted F1", "macro F1", "cost in weighted F1", "p"]]
    scores = found["whole"]["scores"]
    shown = [with_interval(scores[name]) for name in ("weighted_f1", "macro_f1")]
    rows.append(["both as they are", *shown, "", ""])
    for change, one in found["changes"].items():
        shown = [with_interval(one["scores"][name]) for name in ("weighted_f1", "macro_f1")]
        cost = one["costs"]["weighted_f1"]
        rows.append([change, *shown, with_interval(cost, signed=True), f"{cost['p_holm']:.4f}"])
    lines = [*columns(rows), "", *answers(found)]
    if found["slices"]:
        rows = [["what the picture adds, weighted F1", "samples", *map(str, OF_THE_IMAGE)]]
        for name, one in found["slices"].items():
            costs = [one["costs"][str(change)]["weighted_f1"] for change in OF_THE_IMAGE]
            shown = [with_interval(cost, signed=True) for cost in costs]
            rows.append([name, f"{one['num_samples']:,}", *shown])
        lines += ["", *columns(rows)]
    return "\n".join(lines) + "\n"


def answers(found: Mapping[str, Any]) -> list[str]:
    """Whether this checkpoint uses what it is given."""
    lines = []
    for change, words in (
        (Change.SHUFFLED_IMAGES, "the right picture instead of another sample's"),
        (Change.TEXT_ONLY, "the picture instead of none"),
        (Change.SHUFFLED_TEXTS, "the right text instead of another sample's"),
    ):
        for name in ("weighted_f1", "macro_f1"):
            cost = found["changes"][str(change)]["costs"][name]
            told = f"{title_of(name)} {with_interval(cost, signed=True)}, p = {cost['p_holm']:.4f}"
            verdict = "makes no difference that can be told from chance"
            if cost["p_holm"] < SIGNIFICANT:
                verdict = "helps" if cost["value"] > 0 else "harms"
            lines.append(f"{words} {verdict} ({told})")
    return lines
