"""Which classes a model tells apart: all, some, or some merged."""

from __future__ import annotations

from typing import Any

import pytest

from mmsa.errors import UserError
from mmsa.labels import LABEL_NAMES, class_map


def labels(wanted: Any) -> tuple[tuple[str, ...], list[int | None]]:
    """The model's class names, and the label of negative, neutral and positive."""
    classes = class_map(LABEL_NAMES, wanted)
    return classes.names, [classes.label_of(name) for name in LABEL_NAMES]


def test_the_order_of_the_classes() -> None:
    assert LABEL_NAMES == ("negative", "neutral", "positive")


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (None, (("negative", "neutral", "positive"), [0, 1, 2])),
        (["negative", "positive"], (("negative", "positive"), [0, None, 1])),
        (["positive", "negative"], (("positive", "negative"), [1, None, 0])),
        (
            {"bad": ["negative"], "other": ["neutral", "positive"]},
            (("bad", "other"), [0, 1, 1]),
        ),
        ({"up": ["positive"], "down": ["negative"]}, (("up", "down"), [1, None, 0])),
        # A new name may be an old one.
        ({"positive": ["neutral", "positive"], "negative": ["negative"]},
         (("positive", "negative"), [1, 0, 0])),
    ],
)  # fmt: skip
def test_classes_are_kept_left_out_and_merged(wanted: Any, expected: Any) -> None:
    assert labels(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        (["negative", "angry"], "'angry', which the shards do not have; they have: negative, neu"),
        ({"a": ["negative"], "b": ["posit"]}, "'posit', which the shards do not have"),
        (["negative", "negative"], "names the class 'negative' twice"),
        (["negative", "positive", "negative"], "names the class 'negative' twice"),
        ({"a": ["negative"], "b": ["positive", "negative"]}, "'negative' twice"),
        ({"a": ["negative", "positive"], "b": []}, "merges no classes under 'b'"),
        (["negative"], r"leaves 1 class \(negative\); at least 2 are needed"),
        ({"a": ["negative", "positive"]}, r"leaves 1 class \(a\)"),
        ([], "leaves 0 class"),
    ],
)
def test_what_does_not_make_sense_is_refused(wanted: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        class_map(LABEL_NAMES, wanted)


def test_a_data_set_of_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="at least 2 are needed"):
        class_map(["only"], None)
