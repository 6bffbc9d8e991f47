"""Several models as one: the mean of their probabilities on the same samples.

p(y | x) = (1 / M) sum over m of p_m(y | x), the mean over members of the softmax outputs
(Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017, section 2.4). Without the members'
temperatures: the mean of calibrated members is under-confident (Wu and Gales, arXiv 2101.05397). It
is computed from the members' reports, so no model reads a sample twice, and the result is the same
for any number of processes and in any order of the members. N samples, C classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.calibration import FITTED_ON, Calibration
from mmsa.errors import UserError
from mmsa.evaluation.arguments import Options
from mmsa.evaluation.compare.comparison import check_comparable
from mmsa.evaluation.floors.fitting import Floors, floors_of
from mmsa.evaluation.inputs.eval_target import EvalTarget
from mmsa.evaluation.inputs.ledger import read_ledger
from mmsa.evaluation.inputs.sample_facts import SampleFacts, check_keys, read_facts
from mmsa.evaluation.inputs.seen_before import SeenBefore, seen_by, seen_by_any
from mmsa.evaluation.report import files
from mmsa.evaluation.report.findings import compute_findings
from mmsa.evaluation.report.page.gallery import cards
from mmsa.evaluation.report.page.render import PAGE_NAME, render
from mmsa.evaluation.report.predictions_file import rows_of
from mmsa.evaluation.report.read_report import Report, read_report
from mmsa.evaluation.report.summary import chosen_here_text, summary_text
from mmsa.evaluation.requested_targets import RequestedTarget
from mmsa.evaluation.scores.metrics import Predictions, log_probabilities
from mmsa.evaluation.scores.score_names import classification_report_text, columns, with_interval

ENSEMBLE_KEY = "ensemble"
# Of an identity, equal for all members.
_SAME: tuple[str, ...] = (
    *("split", "batch_size", "precision", "device_type", "dataset", "label_names", "protocol"),
    *("shards_digest", "code_version", "samples_sha256"),
)
_OF_MEMBER = ("weights_sha256", "step", "seed", "configuration")


def check_ensemble(targets: Sequence[RequestedTarget]) -> None:
    """Raise `UserError` if the targets cannot be one model, before any is evaluated."""
    for target in targets:
        if target.opened is None:
            raise UserError(
                f"--ensemble takes runs, exports and checkpoints, and {target.name} is a report; "
                "give its run. The report of an ensemble can be given to --compare"
            )
    check_comparable([(target.name, target.identity) for target in targets], what="joined")
    first = targets[0]
    for other in targets[1:]:
        ours, theirs = (one.identity["shards_digest"] for one in (first, other))
        if ours != theirs:
            raise UserError(
                f"{first.name} and {other.name} cannot be joined: they are evaluated on other "
                f"shards ({str(ours)[:12]} and {str(theirs)[:12]}), and an ensemble needs the same "
                "samples. Give the shards to evaluate on with --shards"
            )


def joined(reports: Sequence[Report]) -> Predictions:
    """The mean of the reports' probabilities, as logits (N, C): their logarithms.

    The reports are of the same samples and classes, in any order.
    """
    first, *others = sorted(reports, key=_weights)
    total = log_probabilities(first.predictions.logits)
    for other in others:
        total = np.logaddexp(total, log_probabilities(other.predictions.logits))
    keys, names = first.predictions.keys, first.predictions.label_names
    logits = (total - np.log(len(reports))).astype(np.float32)
    return Predictions(keys, first.predictions.labels, logits, names)


def ensemble_identity(identities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What identifies the ensemble of members with `identities`, in any order of them."""
    members = sorted(
        ({key: one.get(key) for key in _OF_MEMBER} for one in identities),
        key=lambda member: str(member["weights_sha256"]),
    )
    first = identities[0]
    return {
        **{key: first[key] for key in _SAME if key in first},
        "weights_sha256": _digest([member["weights_sha256"] for member in members]),
        "step": None,
        "seed": None,
        "configuration": _digest(sorted(str(m["configuration"]) for m in members))[:16],
        ENSEMBLE_KEY: members,
    }


def write_ensemble(
    members: Sequence[RequestedTarget], options: Options, out: Path | None
) -> RequestedTarget:
    """Main rank: the report of the ensemble of evaluated targets, printed and written.

    It goes to `out`, or to `ensemble-DIGEST/SPLIT` in the members' common parent directory. Raises
    `UserError` if their reports are not of the same samples.
    """
    reports = [read_report(member.report, member.name) for member in members]
    check_comparable([(report.name, report.identity) for report in reports], what="joined")
    opened = [member.opened for member in members if member.opened is not None]
    target, predictions = opened[0], joined(reports)
    facts = read_facts(target.reader)
    check_keys(facts, predictions.keys)
    identity = ensemble_identity([report.identity for report in reports])
    name = f"ensemble of {len(members)} ({', '.join(member.name for member in members)})"
    print(f"\n{name}: the mean of their probabilities")
    print(classification_report_text(predictions))
    findings = compute_findings(
        predictions,
        facts,
        seen=_seen(opened, facts),
        calibration=_without_temperature(predictions, target),
        floors=_floors(target, facts, predictions, options),
    )
    findings["members"] = [_member(report) for report in reports]
    print(summary_text(findings))
    print("\n".join(_table(findings)) + "\n")
    if target.split == FITTED_ON:
        print(chosen_here_text(findings))
    common = Path(os.path.commonpath([member.parent.resolve() for member in members]))
    suffix = members[0].data_suffix
    home = common / f"ensemble-{identity['weights_sha256'][:8]}"
    report = out or home / f"{target.split}{suffix}"
    pages: dict[str, Any] = {}
    if options.page:
        title, openings = f"{name}: {target.split} split", _openings(opened)
        pages[PAGE_NAME] = _page(
            title, openings, target, predictions, facts, findings, identity, options
        )
    files.write_report(
        report,
        predictions,
        findings,
        identity,
        rows_of(predictions, facts, 1.0),
        file_format=options.file_format,
        extra_files=pages,
    )
    print(f"report of the ensemble in {report}")
    return RequestedTarget(name, report, identity, None, common, suffix)


def _weights(report: Report) -> str:
    return str(report.identity["weights_sha256"])


def _digest(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()


def _member(report: Report) -> dict[str, Any]:
    """What the report of an ensemble says about a member: its name, identity and scores."""
    scores = files.read_metrics(report.directory)["scores"]
    shown = ("accuracy", "macro_f1", "weighted_f1", "loss")
    return {
        "name": report.name,
        **{key: report.identity.get(key) for key in _OF_MEMBER},
        "scores": {name: scores[name] for name in shown},
    }


def _table(findings: Mapping[str, Any]) -> list[str]:
    """The scores of the ensemble next to those of its members."""
    names = ("weighted_f1", "accuracy", "loss")
    rows = [["", "weighted F1", "accuracy", "log loss"]]
    rows += [["ensemble", *(with_interval(findings["scores"][name]) for name in names)]]
    for member in findings["members"]:
        rows.append([member["name"], *(with_interval(member["scores"][name]) for name in names)])
    return columns(rows)


def _seen(opened: Sequence[EvalTarget], facts: Sequence[SampleFacts]) -> SeenBefore:
    """A sample that one member has seen is seen."""
    return seen_by_any([seen_by(target, facts) for target in opened])


def _floors(
    target: EvalTarget, facts: Sequence[SampleFacts], predictions: Predictions, options: Options
) -> Floors | None:
    if not options.floors or target.split == "train":
        return None
    try:
        return floors_of(target, facts, predictions)
    except UserError as error:
        print(f"no floors: {error}")
        return None


def _without_temperature(predictions: Predictions, target: EvalTarget) -> Calibration:
    return Calibration(
        temperature=None,
        fitted_on=FITTED_ON,
        num_samples=0,
        shards_digest=target.manifest.digest,
        loss_before=0.0,
        loss_after=0.0,
        why_none="an ensemble is reported as the mean of its members' own probabilities",
    )


def _openings(opened: Sequence[EvalTarget]) -> int:
    """How often the members' runs have opened the test split of these shards, at most."""
    return max(read_ledger(one.source.home).openings_of(one.manifest.digest) for one in opened)


def _page(
    title: str,
    openings: int,
    target: EvalTarget,
    predictions: Predictions,
    facts: Sequence[SampleFacts],
    findings: Mapping[str, Any],
    identity: Mapping[str, Any],
    options: Options,
) -> bytes:
    shown = cards(predictions, facts, target.reader, temperature=1.0, private=options.private)
    return render(
        predictions,
        findings,
        identity,
        cards=shown,
        training=[],
        audit=None,
        openings=openings,
        title=title,
        private=options.private,
    )
