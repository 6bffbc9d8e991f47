"""JSON and YAML that someone else may have written: only their own errors leave these functions.

The parsers themselves raise more for odd input: a `RecursionError` for deep nesting, and PyYAML a
bare `ValueError` or `TypeError` for a number or a date that it cannot convert. Each of these would
be a traceback where a caller expects a parse error. `tests/foundation/test_parsing.py` checks that
no other module calls the parsers.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

# Deeper than any file of ours. What is parsed is then walked by functions that call themselves
# (to write it, to compare it), whose frames take several times as much of the stack.
MOST_NESTED = 100
MOST_VALUES = 100_000  # of a YAML text, with all that its aliases repeat


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The value of a JSON text. Raises `ValueError` (also `json.JSONDecodeError`) otherwise.

    `options` are those of `json.loads`. Values nested more than `MOST_NESTED` deep are refused.
    """
    try:
        value = json.loads(text, **options)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _refuse(value)
    return value


def read_json_objects(
    file: Path, *, last_bytes: int | None = None, with_text: str = ""
) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that others append to; empty where it cannot be read.

    Lines that are no objects are left out: the last one may be half written, by a full disk or a
    kill, and others still count. Of the last `last_bytes` alone, if given, the first line may begin
    in its middle. Lines without `with_text` are passed over unparsed.
    """
    try:
        with file.open("rb") as stream:
            if last_bytes is not None:
                stream.seek(max(0, file.stat().st_size - last_bytes))
            lines = stream.read().split(b"\n")  # splitlines() also cuts at other characters
    except OSError:
        return []
    found = []
    for line in lines:
        if with_text.encode() in line:
            with suppress(ValueError):
                found.append(parse_json(line))
    return [each for each in found if isinstance(each, dict)]


class UniqueKeysLoader(yaml.SafeLoader):
    """YAML whose duplicate keys are errors: plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.YAMLError(f"the key '{key}' appears twice{key_node.start_mark}")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = UniqueKeysLoader) -> Any:
    """The value of a YAML text, read with the safe `loader`. Raises `yaml.YAMLError` otherwise."""
    try:
        value = yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value cannot be converted: {error}") from None
    try:
        _refuse(value, most_values=MOST_VALUES)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from None
    return value


_TOO_DEEP = f"it is nested more than {MOST_NESTED} levels deep"


def _refuse(value: Any, *, most_values: int | None = None) -> None:
    """Raise `ValueError` where lists and dictionaries lie more than `MOST_NESTED` deep, or have
    more than `most_values` values.

    Level by level instead of by recursion. YAML's `&name` and `*name` turn a few lines into
    billions of values, or into one that contains itself and never ends: both are refused.
    """
    number, level = 1, [value] if isinstance(value, dict | list) else []
    for _ in range(MOST_NESTED):
        inner: list[Any] = []
        for one in level:
            values = one.values() if isinstance(one, dict) else one
            number += len(one)
            if most_values is not None and number > most_values:
                raise ValueError(f"it has more than {most_values} values")
            inner += [part for part in values if isinstance(part, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)
