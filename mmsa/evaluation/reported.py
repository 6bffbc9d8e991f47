"""Finished reports: what a comparison and a pool of folds are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa.errors import UserError
from mmsa.evaluation.metrics import Predictions
from mmsa.evaluation.predictions_file import read_predictions
from mmsa.evaluation.report import METRICS_NAME, read_metrics


@dataclass(frozen=True)
class Reported:
    """One report: what it is a report on, its predictions and their duplicate groups (N,)."""

    name: str
    directory: Path
    identity: dict[str, Any]
    predictions: Predictions
    groups: NDArray[np.uint64]

    @property
    def seed(self) -> Any:
        return self.identity.get("seed")


def is_report(directory: Path) -> bool:
    return (directory / METRICS_NAME).is_file()


def read_report(directory: Path, name: str) -> Reported:
    """The report in `directory`; `UserError` where it is none or is damaged."""
    identity = read_metrics(directory)["identity"]
    predictions, groups = read_predictions(directory, identity["label_names"])
    return Reported(name, directory, identity, predictions, groups)


def serves(directory: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the report in `directory` is the one that an evaluation of `identity` would give.

    A report of code that was being changed serves nobody.
    """
    if not is_report(directory) or "dirty" in str(identity["code_version"]):
        return False
    try:
        found = read_metrics(directory)["identity"]
    except UserError:
        return False
    return all(found.get(name) == value for name, value in identity.items())


def check_comparable(identities: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise `UserError` unless all (name, identity) speak of one split of one protocol.

    Also of classes in one order and, where the identities say it, of the same samples.
    """
    first_name, first = identities[0]
    for name, other in identities[1:]:
        for what, key in (
            ("split", "split"),
            ("data set", "dataset"),
            ("protocol", "protocol"),
            ("class order", "label_names"),
            ("sample set (keys and labels)", "samples_sha256"),
        ):
            ours, theirs = first.get(key), other.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise UserError(
                    f"{first_name} and {name} cannot be compared: the {what} of one is "
                    f"{_shown(ours)}, of the other {_shown(theirs)}. Their scores belong to "
                    "different tasks; evaluate both on the same split of the same packed data"
                )
    seen: dict[str, str] = {}
    for name, identity in identities:
        weights = str(identity["weights_sha256"])
        if weights in seen:
            raise UserError(f"{seen[weights]} and {name} are the same weights; name each once")
        seen[weights] = name


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value.get('name')} ({str(value.get('hash'))[:12]})"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)[:40]
