"""Print the floors of packed shards, without a model.

    python -m mmsa.evaluation.floors SHARDS [--split val|test]

fits each floor on train, chooses its settings on val and prints a classification report. Nothing is
chosen on test, but printing its scores means looking at it, so the default is val. `evaluate.py`
prints both floors next to the model, for the model's own classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import EXIT_USER_ERROR, UserError
from mmsa.evaluation.floors.fitting import read_texts
from mmsa.evaluation.floors.majority import majority_predictions
from mmsa.evaluation.floors.tfidf import tfidf_floor
from mmsa.evaluation.scores.score_names import classification_report_text
from mmsa.foundation.command_line import CommandParser
from mmsa.labels import class_map


def main(argv: Sequence[str] | None = None) -> int:
    """Print both floors of packed shards; returns the exit code (2 for a user error)."""
    parser = CommandParser(
        prog="python -m mmsa.evaluation.floors",
        description="Majority class and TF-IDF with logistic regression, fitted on train.",
    )
    parser.add_argument("shards", help="directory written by `python -m shards pack`")
    parser.add_argument("--split", default="val", help="split to report on: val (default) or test")
    arguments = parser.parse_args(argv)
    try:
        _print_floors(arguments.shards, arguments.split)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def _print_floors(directory: str, split: str) -> None:
    manifest = load_manifest(directory)
    classes = class_map(manifest.classes, None)
    train, val, chosen = (
        read_texts(SplitReader(directory, manifest, name, classes))
        for name in ("train", "val", split)
    )
    print(f"{manifest.dataset}, protocol {manifest.protocol.name} {manifest.protocol.hash[:12]}")
    print(f"train {len(train[0])}, val {len(val[0])}, reported on: {split} {len(chosen[0])}\n")
    majority = majority_predictions(train[1], chosen[1], manifest.classes)
    print(f"majority class\n{classification_report_text(majority)}")
    floor = tfidf_floor(*train, *val, *chosen, manifest.classes)
    grid = ", ".join(f"{c:g}: {score:.4f}" for c, score in floor.val_weighted_f1.items())
    print(f"TF-IDF and logistic regression: {floor.num_features} features; C = {floor.c:g}")
    print(f"weighted F1 on val by C: {grid}")
    if split == "val":
        print("C was chosen on this split, so the scores below are optimistically biased")
    print(classification_report_text(floor.predictions))


if __name__ == "__main__":
    raise SystemExit(main())
