"""What a source reads of a raw tree, for the tests of sources."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path
from typing import Any

from shards.example import Example, RawData, Rejected
from shards.sources import get_source


def opened(name: str, raw: Path, **options: Any) -> RawData:
    """The source called `name` on `raw`."""
    return get_source(name).open_raw(raw, options)


def read(name: str, raw: Path, **options: Any) -> tuple[list[Example], list[tuple[str, str]]]:
    """(examples, (source id, reason) of each rejected one), after checks that hold for all."""
    data = opened(name, raw, **options)
    items = list(data.items)
    assert len(items) == data.total
    examples = [item for item in items if isinstance(item, Example)]
    keys = [example.key for example in examples]
    assert len(set(keys)) == len(keys)
    for item in items:
        assert pickle.loads(pickle.dumps(item)) == item  # it travels to packing's workers
    for example in examples:
        assert example.label in data.classes
        assert example.text == example.text.strip() != ""
        assert example.dataset == data.dataset
        assert example.key.startswith(f"{data.dataset}-")
        assert len(example.key.encode("ascii")) < 90
        assert not set(example.key) & set("./\\ ")
        example.text.encode("utf-8")
    rejected = [item for item in items if isinstance(item, Rejected)]
    for item in rejected:
        (item.source_id + item.detail).encode("utf-8")
        assert str(raw) not in item.detail
    return examples, [(item.source_id, str(item.reason)) for item in rejected]


def outcomes(name: str, raw: Path, **options: Any) -> dict[str, int]:
    """Label or reason -> number."""
    examples, rejected = read(name, raw, **options)
    labels = Counter(example.label for example in examples)
    return dict(labels + Counter(reason for _, reason in rejected))
