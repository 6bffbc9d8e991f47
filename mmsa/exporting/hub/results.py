"""Reports of one export, as a model card gives them: scores with intervals, n, and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsa.errors import UserError
from mmsa.evaluation.report.files import METRICS_NAME, read_metrics

# Names in metrics.json -> the hub's metric and how a reader calls it.
SHOWN = {
    "accuracy": ("accuracy", "Accuracy"),
    "macro_f1": ("f1", "Macro F1"),
    "weighted_f1": ("f1", "Weighted F1"),
}


@dataclass(frozen=True)
class Scored:
    """One report: `scores` by the names of `SHOWN`, each with value and perhaps low and high."""

    dataset: str
    split: str
    protocol: str
    protocol_hash: str
    shards_digest: str
    num_samples: int
    level: float  # of the intervals
    scores: dict[str, dict[str, float]]


def reports_of(home: Path, named: Sequence[Path], weights_sha256: str) -> list[Scored]:
    """The reports of these weights: those below `home`/reports, and those in `named` directories.

    Raises `UserError` where a named one is of other weights, or is none.
    """
    found: dict[tuple[str, str], Scored] = {}
    for path in sorted(home.glob(f"reports/*/{METRICS_NAME}")):
        try:
            metrics = read_metrics(path.parent)
        except UserError:
            continue  # of an early version, or damaged; nobody asked for it
        if metrics["identity"].get("weights_sha256") == weights_sha256:
            scored = _scored(metrics)
            found[scored.shards_digest, scored.split] = scored
    for directory in named:
        metrics = read_metrics(directory)
        if metrics["identity"].get("weights_sha256") != weights_sha256:
            raise UserError(
                f"the report {directory} is of other weights than the export; evaluate this export"
            )
        scored = _scored(metrics)
        found[scored.shards_digest, scored.split] = scored
    return list(found.values())


def _scored(metrics: dict[str, Any]) -> Scored:
    identity = metrics["identity"]
    protocol = identity.get("protocol") or {}
    return Scored(
        dataset=str(identity.get("dataset")),
        split=str(identity.get("split")),
        protocol=str(protocol.get("name")),
        protocol_hash=str(protocol.get("hash")),
        shards_digest=str(identity.get("shards_digest")),
        num_samples=int(metrics["num_samples"]),
        level=float((metrics.get("bootstrap") or {}).get("level", 0.95)),
        scores={name: metrics["scores"][name] for name in SHOWN if name in metrics["scores"]},
    )


def eval_results(scored: Sequence[Scored], task: str) -> list[Any]:
    """The reports as `huggingface_hub.EvalResult`, which become the card's `model-index`."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=_plain(one.dataset),
            dataset_name=f"{one.dataset}, protocol {one.protocol}",
            dataset_config=one.protocol,
            dataset_split=one.split,
            dataset_args={
                "protocol_hash": one.protocol_hash,
                "shards_digest": one.shards_digest,
                "num_samples": one.num_samples,
            },
            metric_type=SHOWN[name][0],
            metric_name=SHOWN[name][1],
            metric_value=score["value"],
            metric_args=_interval(score, one.level),
        )
        for one in scored
        for name, score in one.scores.items()
    ]


def _interval(score: dict[str, float], level: float) -> dict[str, float] | None:
    if "low" not in score:
        return None
    return {"low": score["low"], "high": score["high"], "level": level}


def _plain(name: str) -> str:
    """A data set's name as the hub spells names."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return "-".join(part for part in kept.split("-") if part) or "data"


def table(scored: Sequence[Scored]) -> str:
    """The reports as a Markdown table."""
    titles = [title for _, title in SHOWN.values()]
    lines = [
        f"| data | split | n | {' | '.join(titles)} |",
        f"|---|---|---|{'---|' * len(titles)}",
    ]
    for one in scored:
        cells = [_cell(one.scores.get(name)) for name in SHOWN]
        lines.append(
            f"| {one.dataset}, protocol `{one.protocol}` (`{one.protocol_hash[:12]}`) "
            f"| {one.split} | {one.num_samples:,} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _cell(score: dict[str, float] | None) -> str:
    if score is None:
        return ""
    if "low" not in score:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
