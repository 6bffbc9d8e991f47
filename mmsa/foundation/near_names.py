"""A hint for a name that is not known: the nearest one that is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The one of `known` that is most like `name`; "" where none is alike."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question "did you mean NEAREST?"; "" where nothing of `known` is like `name`."""
    near = nearest_name(name, known)
    return f"did you mean {near}?" if near else ""
