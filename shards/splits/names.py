"""The splits, and the names that people have for them."""

from __future__ import annotations

_USUAL = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "devel", "development", "vl"),
    "test": ("test", "testing", "tst", "te", "ts"),
}
_SPLIT_OF = {name: split for split, names in _USUAL.items() for name in names}


def split_named(text: str) -> str | None:
    """The split that `text` names, in any case: `Validation` is val. None where it names none."""
    return _SPLIT_OF.get(text.strip().casefold())
