"""Odd JSON and YAML become parse errors; and nothing else in the project calls the parsers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa.calibration import read_calibration
from mmsa.config import load_config
from mmsa.data.manifest import load_manifest
from mmsa.data.members import object_in
from mmsa.errors import UserError
from mmsa.foundation.parsing import MOST_NESTED, parse_json, parse_yaml, read_json_objects
from mmsa.foundation.settings_yaml import SettingsLoader

ROOT = Path(__file__).resolve().parents[2]


def nested(depth: int, opening: str) -> str:
    return opening * depth + "1" + {"[": "]", '{"a":': "}"}[opening] * depth


@settings(max_examples=12)
@given(depth=st.integers(0, 2 * MOST_NESTED), opening=st.sampled_from(["[", '{"a":']))
def test_depth_is_limited_at_the_same_place(depth: int, opening: str) -> None:
    text = nested(depth, opening)
    if depth <= MOST_NESTED:
        assert parse_json(text) == parse_yaml(text)
        return
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        parse_json(text)
    with pytest.raises(yaml.YAMLError, match="nested more than 100 levels"):
        parse_yaml(text)


def test_yaml_raises_its_own_error_only() -> None:
    for text in ("a: 2026-99-99", "a: !!int ''", "a: !!float x", "a: " + "9" * 5000, "a: [", "\0"):
        with pytest.raises(yaml.YAMLError):
            parse_yaml(text)
    with pytest.raises(yaml.YAMLError, match="nested"):
        parse_yaml("&a [*a]")  # contains itself
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
    with pytest.raises(yaml.YAMLError, match="more than 100000 values"):
        parse_yaml("a0: &a0 [1]\n" + bomb)  # 9 to the 39th lists, each once in memory
    assert parse_yaml("when: 2026-01-01", SettingsLoader) == {"when": "2026-01-01"}


def test_objects_of_lines_that_others_append_to(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_json_objects(file) == []
    lines = [b'{"a": 1}', b"[2]", b"", b"3", b"\xff\x0d{", nested(400, "[").encode(), b'{"b": 4}']
    file.write_bytes(b"\n".join([*lines, b'{"c": ']))
    assert read_json_objects(file) == [{"a": 1}, {"b": 4}]
    assert read_json_objects(file, with_text='"b"') == [{"b": 4}]
    assert read_json_objects(file, last_bytes=10**6) == [{"a": 1}, {"b": 4}]
    assert read_json_objects(file, last_bytes=len('"b": 4}\n{"c": ')) == []  # cut in its middle
    assert read_json_objects(file, last_bytes=len('{"b": 4}\n{"c": ')) == [{"b": 4}]


@pytest.mark.parametrize("depth", [101, 400, 990, 100_000])
def test_files_nested_too_deep_are_refused_in_one_sentence(tmp_path: Path, depth: int) -> None:
    deep = nested(depth, "[")
    (tmp_path / "manifest.json").write_text(deep)
    with pytest.raises(UserError, match="nested more than 100 levels"):
        load_manifest(tmp_path)
    (tmp_path / "calibration.json").write_text(deep)
    with pytest.raises(UserError, match="nested more than 100 levels"):
        read_calibration(tmp_path)
    with pytest.raises(ValueError, match="nested more than 100 levels"):
        object_in(deep.encode())
    if depth > 1000:
        return  # PyYAML takes a second for each such file
    (tmp_path / "run.yaml").write_text(f"run: {deep}\n")
    with pytest.raises(UserError, match="nested more than 100 levels"):
        load_config(str(tmp_path / "run.yaml"))
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(None, [f"run.name={deep}"])


def test_no_other_module_calls_the_parsers() -> None:
    parsers = {("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load")}
    found = []
    for room in ("mmsa", "shards", "launch"):
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                    continue
                if (node.value.id, node.attr) in parsers:
                    found.append(str(file.relative_to(ROOT)))
    assert found == ["mmsa/foundation/parsing.py"] * 2
