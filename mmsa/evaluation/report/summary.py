"""The findings as text: what is printed below the classification report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa.calibration import without_temperature
from mmsa.evaluation.scores.confusions import RATES_UP_TO, most_confused
from mmsa.evaluation.scores.score_names import SCORE_TITLES, columns, title_of, with_interval


def summary_text(findings: Mapping[str, Any]) -> str:
    """Scores with intervals next to the floors; confusions; leaks; calibration; slices."""
    blocks = [_scores(findings), _confusions(findings), findings.get("cautions", [])]
    blocks += [_leaks(findings["leaks"])]
    if made_of := made_of_text(findings):
        blocks.append([made_of])
    if findings["floors"]:
        blocks.append(_lead(findings["floors"]))
        if note := fitted_on_note(findings["floors"]):
            blocks[-1].append(f"  {note}")
    blocks += [_calibration(findings), _slices(findings["slices"])]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _scores(findings: Mapping[str, Any]) -> list[str]:
    floors = findings["floors"]
    header = ["", "model [95 % interval]"]
    header += ["majority class", "TF-IDF, text only"] if floors else []
    rows = [header]
    for name, title in SCORE_TITLES.items():
        row = [title, with_interval(findings["scores"][name])]
        if floors:
            row += [with_interval(floors[f]["scores"][name]) for f in ("majority", "tfidf")]
        rows.append(row)
    facts = findings["bootstrap"]
    return [
        *columns(rows),
        f"intervals: {facts['resamples']:,} resamples (areas {facts['resamples_of_areas']:,}) of "
        f"{facts['num_groups']:,} duplicate groups, {findings['num_samples']:,} samples",
    ]


def _confusions(findings: Mapping[str, Any]) -> list[str]:
    """The confusion matrix of few classes, else the pairs of classes with the most errors."""
    matrix, names = findings["confusion_matrix"], list(findings["per_class"])
    if len(names) <= RATES_UP_TO:
        rows = [["true \\ predicted", *names]]
        rows += [[name, *map("{:,}".format, row)] for name, row in zip(names, matrix, strict=True)]
        return columns(rows)
    pairs = most_confused(matrix, names)
    if not pairs:
        return ["most confused classes: none, every sample is predicted correctly"]
    rows = [["most confused: true class", "predicted as", "samples", "share of the class"]]
    rows += [[pair.true, pair.predicted, f"{pair.count:,}", f"{pair.share:.1%}"] for pair in pairs]
    return columns(rows)


def _lead(floors: Mapping[str, Any]) -> list[str]:
    lines = ["lead over TF-IDF, on the same samples:"]
    for name, score in floors["lead_over_tfidf"].items():
        # An interval that ends at 0 does not show a lead.
        apart = score["low"] > 0 or score["high"] < 0
        verdict = "" if apart else ": not distinguishable"
        lines.append(f"  {title_of(name)} {with_interval(score, signed=True)}{verdict}")
    if floors.get("caution"):
        lines.append(f"  take this difference with caution: {floors['caution']}")
    return lines


def fitted_on_note(floors: Mapping[str, Any]) -> str:
    """On which data the floors were fitted, if the evaluated data is not that of training."""
    fitted = floors.get("fitted_on")
    if fitted is None:
        return ""
    data = f"{fitted['dataset']} ({fitted['shards_digest'][:8]})"
    if fitted["same_as_model"]:
        return f"The floors were fitted on the model's own training data, {data}."
    return (
        f"The floors were fitted on the train split of {data}, which the model was not trained on: "
        "its own training data is not at its place any more. The lead compares different training "
        "data."
    )


def _leaks(leaks: Mapping[str, Any]) -> list[str]:
    if not leaks["known"]:
        return [f"leaks: unknown ({leaks['why']})"]
    counts = {name: leaks[name]["num_samples"] for name in ("clean", "leaked")}
    if "scores" not in leaks["clean"]:
        share = "no sample has" if not counts["leaked"] else "every sample has"
        if "compared" in leaks:
            what = "its text or its picture in the training data, which is another set"
            return [f"leaks: {share} {what}; near duplicates were not looked for"]
        return [f"leaks: {share} a duplicate in a split that was used before this one"]
    rows = [["leaks", f"clean, n = {counts['clean']:,}", f"leaked, n = {counts['leaked']:,}"]]
    for name in ("accuracy", "macro_f1", "weighted_f1", "loss"):
        parts = [leaks[which]["scores"][name] for which in ("clean", "leaked")]
        rows.append([title_of(name), *map(with_interval, parts)])
    return columns(rows)


def _calibration(findings: Mapping[str, Any]) -> list[str]:
    calibration = findings["calibration"]
    if calibration.get("why_none"):
        return [f"calibration: {without_temperature(calibration['why_none'])}"]
    if calibration["temperature"] is None:
        return ["calibration: the export has no temperature (evaluate.py --split val --calibrate)"]
    rows = [["calibration", "as trained", f"temperature {calibration['temperature']:.4g}"]]
    for name, score in calibration["scores"].items():
        rows.append([title_of(name), *map(with_interval, (findings["scores"][name], score))])
    return columns(rows)


def _slices(slices: Mapping[str, Any]) -> list[str]:
    if not slices:
        return []
    rows = [["slice", "samples", "accuracy", "macro F1"]]
    for name, findings in slices.items():
        scores = [with_interval(findings["scores"][score]) for score in ("accuracy", "macro_f1")]
        rows.append([name, f"{findings['num_samples']:,}", *scores])
    return columns(rows)


def made_of_text(findings: Mapping[str, Any]) -> str:
    """What a soup or an ensemble is made of, and how it was chosen; empty for one model."""
    members, soup = findings.get("members"), findings.get("soup")
    if members:
        names = ", ".join(one["name"] for one in members)
        return f"probabilities: the mean of {len(members)} models ({names})"
    if not soup:
        return ""
    inside = [one["name"] for one in soup["ingredients"]]
    named = f"{soup['kind']} soup of {len(inside)} ({', '.join(inside)})"
    return f"weights: {named}; {looks_text(soup)}"


def looks_text(soup: Mapping[str, Any]) -> str:
    """How often the choice of a soup used the validation split, as a clause."""
    if not soup["validations"]:
        return "it has all that were given, so nothing was chosen for it"
    return (
        f"its choice used the validation split {soup['validations']} times, after the runs had "
        "chosen their best exports on it: scores on that split are optimistically biased"
    )


def chosen_here_text(findings: Mapping[str, Any]) -> str:
    """That the scores of the validation split flatter what was chosen on it."""
    chosen = ["the best export"]
    if findings.get("members"):
        chosen = ["the best export of each member"]
    if findings.get("soup"):
        chosen = ["the best export of each ingredient", "the ingredients of the soup"]
    if (findings.get("calibration") or {}).get("temperature") is not None:
        chosen.append("its temperature")
    if findings.get("floors"):
        chosen.append("the C of TF-IDF")
    listed = " and ".join([", ".join(chosen[:-1]), chosen[-1]] if chosen[1:] else chosen)
    were = "were" if chosen[1:] else "was"
    return (
        f"note: {listed} {were} chosen on this split, so scores on it are optimistically biased\n"
    )
