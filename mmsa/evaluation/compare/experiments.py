"""Whole k-fold experiments as contenders: the folds of each pooled, then compared in pairs.

An experiment is the runs of one configuration and one seed on all folds of a protocol. Pooled, its
test folds hold every sample once, each predicted by a model that never saw it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmsa.errors import UserError
from mmsa.evaluation.compare.comparison import check_comparable
from mmsa.evaluation.compare.folds import check_folds, fold_of, pooled
from mmsa.evaluation.report.read_report import Report

Identities = Sequence[tuple[str, Mapping[str, Any]]]  # name of a target -> what was measured


def check_experiments(identities: Identities) -> None:
    """Raise `UserError` unless the targets are two or more whole experiments on the same folds."""
    experiments = _experiments(identities)
    if len(experiments) < 2:
        raise UserError(
            "--folds --compare compares several experiments, but all targets have the same "
            "configuration and seed; add the folds of another one, or leave --compare out"
        )
    check_comparable([_identity(*_checked(identities, places)) for places in experiments])


def pooled_experiments(reports: Sequence[Report]) -> list[Report]:
    """The folds of each experiment as one report, in the order of the targets.

    The caller has called `check_experiments`. Raises `UserError` if the experiments do not have the
    same samples.
    """
    identities = [(report.name, report.identity) for report in reports]
    found = []
    for places in _experiments(identities):
        name, identity = _identity(*_checked(identities, places))
        members = [reports[place] for place in places]
        predictions, groups = pooled(members)
        identity["samples_sha256"] = _digest(
            [*predictions.keys, *map(str, predictions.labels.tolist())]
        )
        found.append(Report(name, members[0].directory.parent, identity, predictions, groups))
    check_comparable([(report.name, report.identity) for report in found])
    # Groups are numbered within a fold's data set, which is the same set for all experiments.
    for other in found[1:]:
        if not np.array_equal(other.groups, found[0].groups):
            raise UserError(
                f"{found[0].name} and {other.name} cannot be compared: their duplicate groups "
                "differ, so they were packed from other data or with other settings"
            )
    return found


def _experiments(identities: Identities) -> list[list[int]]:
    """The places of the targets of each experiment; runs of an unknown configuration are one."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, (_, identity) in enumerate(identities):
        key = str(identity.get("configuration")), str(identity.get("seed"))
        places.setdefault(key, []).append(place)
    return list(places.values())


def _checked(identities: Identities, places: Sequence[int]) -> tuple[Identities, int]:
    """The targets of an experiment, in the order of its folds, and how many folds there are."""
    members = [identities[place] for place in places]
    folds = check_folds(members)
    order = sorted(range(len(members)), key=lambda place: folds[place].number)
    return [members[place] for place in order], folds[0].count


def _identity(members: Identities, count: int) -> tuple[str, dict[str, Any]]:
    """Name and identity of an experiment, from its targets in the order of its folds."""
    first = members[0][1]
    hashes = [str(identity["protocol"]["hash"]) for _, identity in members]
    return _name([name for name, _ in members]), {
        **{key: first.get(key) for key in ("dataset", "split", "label_names")},
        **{key: first.get(key) for key in ("configuration", "seed")},
        "protocol": {
            "name": f"{fold_of(*members[0]).rule}, {count} folds",
            "hash": _digest(hashes),
        },
        "weights_sha256": _digest([str(identity["weights_sha256"]) for _, identity in members]),
    }


def _name(names: Sequence[str]) -> str:
    """What the paths of the folds have in common: `concat/fold-1`, `concat/fold-2` -> `concat`."""
    common = os.path.commonpath(names) if len(set(names)) > 1 else names[0]
    return common or names[0]


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8")).hexdigest()
