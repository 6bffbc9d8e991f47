"""Does the image help? One checkpoint on the same samples, a modality masked or shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.data.index_file import lacks
from mmsa.data.manifest import MODALITIES
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.evaluation.inputs.sample_facts import SampleFacts, groups_of
from mmsa.evaluation.inputs.slices import HAS_BOTH, slice_masks
from mmsa.evaluation.modality_audit.changed_inputs import Change
from mmsa.evaluation.scores.bootstrap import AREA_RESAMPLES, Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.evaluation.scores.paired_tests import SIGNIFICANT, holm, mcnemar, verdict_caution
from mmsa.evaluation.scores.resampled import resampled_scores
from mmsa.evaluation.scores.score_names import columns, title_of, with_interval
from mmsa.evaluation.scores.score_table import as_json, bootstrap_facts, score_table
from mmsa.evaluation.scores.sums import OVERALL, overall_scores, summands

AUDIT_NAME = "modality_audit.json"
COST_SCORES = ("accuracy", "macro_f1", "weighted_f1", "loss")  # scores with a cost
# The changes that show what the image adds.
IMAGE_CHANGES = (Change.TEXT_ONLY, Change.SHUFFLED_IMAGES)


def check_modalities(target: EvalTarget) -> None:
    """Raise `UserError` unless the model reads both texts and images."""
    preprocessing = target.export.preprocessing
    if preprocessing.image is None or preprocessing.max_tokens is None:
        only = "texts" if preprocessing.image is None else "images"
        raise UserError(
            f"--modality-audit needs a model of texts and images, but {target.name} reads only "
            f"{only}; compare it with another model with --compare"
        )
    _, records = target.reader.all_records()
    for modality in MODALITIES:
        number = int((~lacks(records, modality)).sum())
        if number < 3:
            of_it = f" with its {modality}" if number < len(records) else ""
            raise UserError(
                f"--modality-audit exchanges texts and images between samples and needs at least "
                f"3; the split has {number}{of_it}"
            )


def audit(
    whole: Predictions, changed: Mapping[Change, Predictions], facts: Sequence[SampleFacts]
) -> dict[str, Any]:
    """Scores under each change, its cost, and what the image adds on each slice.

    `whole` and `changed` are predictions of the same samples. A cost is the unchanged score minus
    the score under the change, by paired bootstrap, with p-values corrected by Holm's rule over
    the changes. `missing`, where there are any, counts the samples without a text or an image: no
    change of that modality reaches them, so they dilute its cost.
    """
    groups = groups_of(facts)
    bootstrap = Bootstrap.of(groups)
    found: dict[str, Any] = {"bootstrap": bootstrap_facts(bootstrap), "changes": {}, "slices": {}}
    costs = _costs(whole, changed, bootstrap)
    for change, predictions in changed.items():
        table = score_table(predictions, bootstrap, areas=False, names=OVERALL)
        found["changes"][str(change)] = {"scores": as_json(table), "costs": costs[change]}
    _add_cautions(found["changes"], whole, changed, bootstrap)
    table = score_table(whole, bootstrap, areas=False, names=OVERALL)
    found["whole"] = {"scores": as_json(table)}
    unchanged = {
        "text": sum(not sample.has_text for sample in facts),
        "image": sum(not sample.has_image for sample in facts),
    }
    if any(unchanged.values()):
        found["missing"] = unchanged
    image_changes = {change: changed[change] for change in IMAGE_CHANGES}
    for name, mask in slice_masks(facts).items():
        within = Bootstrap.of(groups[mask], resamples=AREA_RESAMPLES)
        found["slices"][name] = {
            "num_samples": int(mask.sum()),
            "costs": {
                str(change): cost
                for change, cost in _costs(whole, image_changes, within, mask).items()
            },
        }
    return found


def _add_cautions(
    found: Mapping[str, dict[str, Any]],
    whole: Predictions,
    changed: Mapping[Change, Predictions],
    bootstrap: Bootstrap,
) -> None:
    """Add `caution` to each change whose significant cost would rest on few samples."""
    right = whole.predicted == whole.labels
    tests = [mcnemar(right, one.predicted == one.labels) for one in changed.values()]
    p_values = holm([p for _, _, p in tests])
    for change, (first_only, second_only, _), p in zip(changed, tests, p_values, strict=True):
        caution = verdict_caution("accuracy", bootstrap.num_groups, first_only + second_only, p)
        if caution:
            found[str(change)]["caution"] = caution


def _costs(
    whole: Predictions,
    changed: Mapping[Change, Predictions],
    bootstrap: Bootstrap,
    mask: NDArray[np.bool_] | None = None,
) -> dict[Change, dict[str, Any]]:
    """Change -> score -> cost with interval and p-value, on the samples in `mask`."""
    tables = [summands(predictions) for predictions in (whole, *changed.values())]
    if mask is not None:
        tables = [table.part(mask) for table in tables]
    resampled = resampled_scores(tables, bootstrap, with_classes=0)
    points = [overall_scores(table.total()) for table in tables]
    found: dict[Change, dict[str, Any]] = {change: {} for change in changed}
    for score in COST_SCORES:
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


def audit_text(audited: Mapping[str, Any]) -> str:
    """The audit as tables, with sentences that answer whether each modality helps."""
    rows = [["modality audit", "weighted F1", "macro F1", "cost in weighted F1", "p"]]
    scores = audited["whole"]["scores"]
    shown = [with_interval(scores[name]) for name in ("weighted_f1", "macro_f1")]
    rows.append(["unchanged", *shown, "", ""])
    for change, one in audited["changes"].items():
        shown = [with_interval(one["scores"][name]) for name in ("weighted_f1", "macro_f1")]
        cost = one["costs"]["weighted_f1"]
        rows.append([change, *shown, with_interval(cost, signed=True), f"{cost['p_holm']:.4f}"])
    lines = [*columns(rows), "", *answers(audited)]
    missing = audited.get("missing", {})
    lines += [
        f"{number:,} samples have no {modality}: no change of it reaches them, so its cost is that "
        f"of the others, diluted. See the slice '{HAS_BOTH}'"
        for modality, number in missing.items()
        if number
    ]
    if audited["slices"]:
        rows = [["what the image adds, weighted F1", "samples", *map(str, IMAGE_CHANGES)]]
        for name, one in audited["slices"].items():
            costs = [one["costs"][str(change)]["weighted_f1"] for change in IMAGE_CHANGES]
            shown = [with_interval(cost, signed=True) for cost in costs]
            rows.append([name, f"{one['num_samples']:,}", *shown])
        lines += ["", *columns(rows)]
    return "\n".join(lines) + "\n"


def answers(audited: Mapping[str, Any]) -> list[str]:
    """One sentence per change and score: does the checkpoint use this input?"""
    lines = []
    for change, what in (
        (Change.SHUFFLED_IMAGES, "the right image instead of another sample's"),
        (Change.TEXT_ONLY, "the image instead of none"),
        (Change.SHUFFLED_TEXTS, "the right text instead of another sample's"),
    ):
        for name in ("weighted_f1", "macro_f1"):
            cost = audited["changes"][str(change)]["costs"][name]
            figures = (
                f"{title_of(name)} {with_interval(cost, signed=True)}, p = {cost['p_holm']:.4f}"
            )
            verdict = "makes no significant difference"
            if cost["p_holm"] < SIGNIFICANT:
                caution = audited["changes"][str(change)].get("caution")
                verdict = "helps" if cost["value"] > 0 else "harms"
                if caution:
                    verdict = "may help" if cost["value"] > 0 else "may harm"
                    figures += f"; caution: {caution}"
            lines.append(f"{what} {verdict} ({figures})")
    return lines
