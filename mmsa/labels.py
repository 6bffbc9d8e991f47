"""Class names and their order, defined only here.

Published encodings of MVSA conflict (CLMLF: 0 = positive; Cheema et al.: 0 = neutral), so classes
travel by name: in `key.json`, in manifests, exports and reports. The order below is the order of
the logits of a three-class model and of the rows of its report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmsa.errors import UserError

LABEL_NAMES: tuple[str, ...] = ("negative", "neutral", "positive")


Wanted = Sequence[str] | Mapping[str, Sequence[str]] | None  # the setting `data.classes`


class ClassMap:
    """Which classes of a data set a model distinguishes, and under which names.

    `names` is the order of the model's classes; `members` maps each kept class of the data set to
    one of them. Built by `class_map`.
    """

    def __init__(self, names: Sequence[str], members: Mapping[str, str]) -> None:
        self.names = tuple(names)
        self.members = dict(members)

    def label_of(self, dataset_class: str) -> int | None:
        """The integer label of a class of the data set; None where its samples are left out."""
        name = self.members.get(dataset_class)
        return None if name is None else self.names.index(name)


def class_map(dataset_classes: Sequence[str], wanted: Wanted) -> ClassMap:
    """Apply the setting `data.classes` to the classes of a data set.

    `wanted` is `None` (all, in the data set's order), a list (those kept, in that order) or a
    mapping from new names to the classes merged under them.

    Raises `UserError` for a class that the data set lacks, one named twice, a new name without
    classes, or fewer than two.
    """
    if wanted is None:
        groups: list[tuple[str, list[str]]] = [(name, [name]) for name in dataset_classes]
    elif isinstance(wanted, Mapping):
        groups = [(str(name), list(members)) for name, members in wanted.items()]
    else:
        groups = [(str(name), [str(name)]) for name in wanted]
    names = [name for name, _ in groups]
    members: dict[str, str] = {}
    for name, parts in groups:
        if not parts:
            raise UserError(
                f"data.classes merges no classes under '{name}'; name some, or leave it out"
            )
        for part in parts:
            if part not in dataset_classes:
                raise UserError(
                    f"data.classes names the class '{part}', which the shards do not have; "
                    f"they have: {', '.join(dataset_classes)}"
                )
            if part in members:
                raise UserError(f"data.classes names the class '{part}' twice; name each once")
            members[part] = name
    if len(names) < 2:
        raise UserError(
            f"data.classes leaves {len(names)} class ({', '.join(names)}); at least 2 are needed"
        )
    return ClassMap(names, members)


def label_names_in(content: Mapping[str, object], path: Path) -> tuple[str, ...]:
    """The class names in the `content` of an export's `labels.json` at `path`.

    Raises `UserError` unless they are two or more, each once.
    """
    names = content.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f'{path} has no list of class names, {{"label_names": ["negative", ...]}}; '
            "copy the export again"
        )
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"{path} lists the classes {', '.join(names) or 'none'}; expected two or more, each "
            "once. Copy the export again"
        )
    return tuple(names)
