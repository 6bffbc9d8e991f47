"""From the labels that a user's data has to the names of its classes.

One label has often several spellings: `joy` and `JOY`, `1` and `1.0`. Each spelling as a class of
its own would be a mistake that training does not show, and joining classes that were meant apart
would be one too. So the user decides where it matters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mmsa.errors import UserError
from mmsa.raw_files.numbers import number_in, plain_number, position_in

Similar = Literal["merge", "keep"]
_SHOWN = 5  # groups of similar labels
_SHOWN_LABELS = 20
_SHOWN_CHARACTERS = 80
_FEW_PERCENT = 5  # of the labels: so many may be mistakes


@dataclass(frozen=True)
class ClassNames:
    """The classes in order, and the class of each label that was found."""

    names: tuple[str, ...]
    _class_of: Mapping[str, str] = field(default_factory=dict)

    def class_of(self, label: str) -> str | None:
        """The class of a label of the data; None where it is none of the classes."""
        return self._class_of.get(label)

    @property
    def merged(self) -> dict[str, str]:
        """The labels that differ from their class by more than the form of a number."""
        pairs = sorted(self._class_of.items())
        return {
            label: name
            for label, name in pairs
            if name not in (label, plain_number(label)) and _key(label) == _key(name)
        }


def class_names(
    found: Counter[str], stated: Sequence[str] | None, similar: Similar | None, *, where: str
) -> ClassNames:
    """The classes of data with the labels `found` (label -> rows), which messages call `where`.

    `stated` are the user's names in order: a label is one of them, or a number from 0 that stands
    for one, where none of the names is a number. Without `stated` every label is a class, sorted.
    Labels that differ only in case, spaces or number format are one class with `similar` "merge"
    and classes of their own with "keep".

    Raises `UserError` where such labels are found and `similar` is None, and where a stated class
    has no label and a label no class: two names for one thing.
    """
    if stated is not None:
        return _stated(found, tuple(stated), similar)
    groups = _groups(found)
    if similar is None:
        refuse_similar(
            found,
            where=where,
            keep="--similar-classes merge makes one class of them, keep keeps each",
        )
    class_of: dict[str, str] = {}
    for labels in groups:
        for label in labels:
            keeps = similar == "keep" and len(labels) > 1
            class_of[label] = label if keeps else plain_number(labels[0])
    return ClassNames(tuple(sorted(set(class_of.values()))), class_of)


def refuse_empty(names: Sequence[str], found: Mapping[str, int], *, labels: Counter[str]) -> None:
    """Raise `UserError` where one of the stated `names` has no sample in `found` (name -> number).

    In data to train on it would be an output of the model that is never right. A set that is only
    evaluated may well lack a class of its model. The message lists the `labels` of the data.
    """
    empty = [name for name in names if not found.get(name)]
    if empty:
        shown = ", ".join(repr(name[:_SHOWN_CHARACTERS]) for name in empty[:_SHOWN_LABELS])
        raise UserError(
            f"--classes names {shown}, of which there is no sample. Labels found: "
            f"{_counted(labels) or 'none'}. Leave it out, or name the classes as the data does"
        )


def refuse_similar(labels: Counter[str], *, where: str, keep: str) -> None:
    """Raise `UserError` where `labels` differ only in case, spaces or number format.

    `keep` ends the message: what to do.
    """
    several = [alike for alike in _groups(labels) if len(alike) > 1]
    if not several:
        return
    shown = "; ".join(
        _counted(Counter({label: labels[label] for label in alike})) for alike in several[:_SHOWN]
    )
    more = f"; and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
    raise UserError(
        f"{where} has labels that differ only in case, spaces or number format: {shown}{more}. "
        f"{keep}"
    )


def _groups(labels: Counter[str]) -> list[list[str]]:
    """The labels that are alike, each group with the most frequent first."""
    groups: dict[str, list[str]] = {}
    for label in sorted(labels, key=lambda label: (-labels[label], label)):
        groups.setdefault(_key(label), []).append(label)
    return list(groups.values())


def _stated(found: Counter[str], stated: tuple[str, ...], similar: Similar | None) -> ClassNames:
    by_key: dict[str, list[str]] = {}
    for name in stated:
        by_key.setdefault(_key(name), []).append(name)
    class_of: dict[str, str] = {}
    for label in found:
        alike = by_key.get(_key(label), [])
        chosen = stated_class(label, stated)
        if chosen is None and similar == "merge" and len(alike) == 1:
            chosen = alike[0]
        if chosen is not None:
            class_of[label] = chosen
    _refuse_other_numbers(found, class_of, stated)
    # Later than here it can be told too, but then all images have been encoded.
    if len(class_of) < len(found):
        refuse_empty(stated, Counter(class_of.values()), labels=found)
    return ClassNames(stated, class_of)


def _refuse_other_numbers(
    found: Counter[str], class_of: Mapping[str, str], stated: Sequence[str]
) -> None:
    """Raise `UserError` where names are given for the numbers from 0, and the numbers are others.

    Labels -1, 0 and 1 with three names would give the first name to 0. A single mistyped number is
    no reason: its rows are rejected.
    """
    numbers = [label for label in found if number_in(label) is not None]
    others = Counter({label: found[label] for label in numbers if label not in class_of})
    named = [label for label in numbers if class_of.get(label) not in (None, plain_number(label))]
    if named and 100 * others.total() > _FEW_PERCENT * found.total():
        shown = ",".join(sorted({plain_number(n) for n in numbers}, key=float)[:_SHOWN_LABELS])
        raise UserError(
            f"--classes {','.join(stated)} names the numbers from 0 to {len(stated) - 1}, but the "
            f"labels are {_counted(Counter({n: found[n] for n in numbers}))}. Take the numbers as "
            f"names (--classes={shown}), or write the names into the data"
        )


def stated_class(label: str, stated: Sequence[str]) -> str | None:
    """Which of the user's names a label of the data is, or stands for as a number from 0."""
    for text in (label, plain_number(label)):
        if text in stated:
            return text
    if any(number_in(name) is not None for name in stated):
        return None
    position = position_in(label, len(stated))
    return None if position is None else stated[position]


def unknown(label: str, names: Sequence[str], *, hint: bool = True) -> str:
    """What is said of a label that is none of the classes; `hint` where an option can merge it."""
    expected = ", ".join(names[:_SHOWN_LABELS])
    alike = [name for name in names if _key(name) == _key(label)]
    said = f"{label[:_SHOWN_CHARACTERS]!r}; expected {expected}"
    if hint and len(alike) == 1:
        said += f"; --similar-classes merge takes it for {alike[0]!r}"
    return said


def _key(label: str) -> str:
    """The same for labels that differ only in case, spaces, Unicode form or number format."""
    number = number_in(label)
    if number is not None:
        return repr(number + 0.0)  # -0.0 is 0.0
    return "".join(unicodedata.normalize("NFKC", label).casefold().split())


def _counted(labels: Counter[str]) -> str:
    shown = [
        f"{label[:_SHOWN_CHARACTERS]!r} ({number:,})"
        for label, number in labels.most_common(_SHOWN_LABELS)
    ]
    return ", ".join(shown) + (", ..." if len(labels) > _SHOWN_LABELS else "")
