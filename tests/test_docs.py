"""The pages agree with the code: settings, formats, run configurations, links and paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from packed import SIZES, open_split, packed_set
from pydantic import BaseModel

from mmsa.config import Config, FusionConfig
from mmsa.data.manifest import (
    INDEX_DTYPE,
    Manifest,
    ProtocolInfo,
    ShardInfo,
    SplitInfo,
    load_manifest,
)
from mmsa.models.fusion import FUSIONS
from mmsa.models.losses import LOSSES
from mmsa.training.checkpoints.resume import _FREE
from mmsa.training.trackers import TRACKERS
from shards.example import Reason

ROOT = Path(__file__).resolve().parent.parent
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
SHARD_FORMAT = (ROOT / "docs" / "shard-format.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _table(page: str, heading: str) -> dict[str, list[str]]:
    """Key -> the other cells of its row, in the first table under a heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n[^#]*?((?:^\|.*\n)+)", page, re.M)
    assert found, f"no heading '{heading}' with a table"
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|$", found[1], re.M)
    assert len({key for key, _ in rows}) == len(rows), heading
    return {key: cells.split(" | ") for key, cells in rows}


def _sections(model: type[BaseModel], path: str = "") -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found[f"{path}{key}"] = field.annotation
            found |= _sections(field.annotation, f"{path}{key}.")
    return found


def _choices(annotation: Any) -> list[str]:
    """The words of every Literal in an annotation."""
    parts = get_args(annotation)
    words = [part for part in parts if isinstance(part, str)]
    return words + [word for part in parts for word in _choices(part)]


def _check_table(rows: dict[str, list[str]], model: type[BaseModel]) -> None:
    assert list(rows) == list(model.model_fields)
    for key, field in model.model_fields.items():
        shown, values, *_ = rows[key]
        if isinstance(field.default, BaseModel):
            continue
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert yaml.safe_load(shown.strip("`")) == default, (key, shown)
        missing = {word for word in _choices(field.annotation) if word not in values}
        assert not missing, (key, missing)


@pytest.mark.parametrize("section", sorted(_sections(Config)))
def test_each_setting_is_in_the_page_with_default_and_values(section: str) -> None:
    _check_table(_table(CONFIGURATION, section), _sections(Config)[section])


def _heading_of(fusion: str) -> str:
    """The heading of the section about a fusion head, which may be about several."""
    part = CONFIGURATION.split("### model.fusion\n")[1].split("\n### ")[0]
    headings = re.findall(r"^#### (.*)$", part, re.M)
    found = [heading for heading in headings if fusion in heading.split(", ")]
    assert len(found) == 1, (fusion, headings)
    return str(found[0])


# Heads of the package: another test in this process may have registered more.
OWN_FUSIONS = [name for name, head in FUSIONS.items() if head.__module__.startswith("mmsa.")]
OWN_LOSSES = [name for name, loss in LOSSES.items() if loss.__module__.startswith("mmsa.")]
OWN_TRACKERS = [name for name, one in TRACKERS.items() if one.__module__.startswith("mmsa.")]


@pytest.mark.parametrize("name", OWN_FUSIONS)
def test_each_setting_of_a_fusion_is_in_the_page_with_its_default(name: str) -> None:
    _check_table(_table(CONFIGURATION, _heading_of(name)), FUSIONS[name].Settings)


def test_each_fusion_is_in_the_page() -> None:
    values = _table(CONFIGURATION, "model.fusion")["name"][1]
    assert values.split(", ") == OWN_FUSIONS
    assert FusionConfig().name == "concat"


def test_each_loss_and_tracker_is_in_the_page() -> None:
    assert _table(CONFIGURATION, "model")["loss"][1].split(", ") == OWN_LOSSES
    values = _table(CONFIGURATION, "run")["trackers"][1]
    assert values.removeprefix("list of ").split(", ") == OWN_TRACKERS


@pytest.mark.parametrize("name", OWN_LOSSES)
def test_each_setting_of_a_loss_is_in_the_page_with_its_default(name: str) -> None:
    if LOSSES[name].Settings.model_fields:
        _check_table(_table(CONFIGURATION, f"Loss {name}"), LOSSES[name].Settings)


def test_the_meaning_of_a_setting_is_one_sentence() -> None:
    part = CONFIGURATION.split("## Settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .*\| (.*?) \|$", part, re.M)
    assert len(rows) > 60
    several = [key for key, meaning in rows if re.search(r"\. [A-Z`]", meaning)]
    assert several == []


def test_each_setting_that_may_change_on_resume_is_in_the_page() -> None:
    part = CONFIGURATION.split("## What may change on resume")[1].split("\n## ")[0]
    named = [
        name
        for row in re.findall(r"^\| (`.*?) \|", part, re.M)
        for name in re.findall("`(.*?)`", row)
    ]
    assert sorted(named) == sorted(_FREE)


def test_each_run_configuration_is_in_the_page() -> None:
    named = set(re.findall(r"^\| `(launch/runs/\w+\.yaml)` \| \w", CONFIGURATION, re.M))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "launch" / "runs").glob("*.yaml")}
    assert named == there
    assert "launch/runs/full_finetune.yaml" in named


@pytest.mark.parametrize("model", [Manifest, ProtocolInfo, SplitInfo, ShardInfo])
def test_each_field_of_the_manifest_is_in_the_page(model: type[BaseModel]) -> None:
    part = SHARD_FORMAT.split("## manifest.json")[1].split("\n## ")[0]
    assert [name for name in model.model_fields if f"`{name}`" not in part] == []


def test_each_field_of_an_index_record_is_listed_with_offset_and_size() -> None:
    part = SHARD_FORMAT.split("\nRecord:\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| `(\w+)` \|", part, re.M)
    fields = INDEX_DTYPE.fields
    assert fields is not None
    expected = [(str(at), str(kind.itemsize), name) for name, (kind, at) in fields.items()]
    assert rows == expected


def test_each_reason_of_a_rejection_is_in_the_page() -> None:
    part = SHARD_FORMAT.split("## rejected.jsonl")[1].split("\n## ")[0]
    assert [str(reason) for reason in Reason if f"`{reason}`" not in part] == []


@pytest.mark.parametrize("reader", ["samples", "stock_samples"])
def test_the_readers_of_the_page_read_a_packed_set(reader: str, tmp_path: Path) -> None:
    packed_set(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", SHARD_FORMAT, re.S):
        exec(block, names)
    read = list(names[reader](str(tmp_path), "train"))
    assert [(key, label) for key, label, _, _ in read[:3]] == [
        ("tiny-train-0", "negative"),
        ("tiny-train-1", "neutral"),
        ("tiny-train-2", "positive"),
    ]
    ours = open_split(tmp_path, load_manifest(tmp_path))
    expected = [
        (sample.key, sample.text, sample.image)
        for shard, size in enumerate(SIZES)
        for sample in (ours.read(shard, row) for row in range(size))
    ]
    assert [(key, text, jpeg) for key, _, text, jpeg in read] == expected


def test_the_reader_of_the_page_finds_damage(tmp_path: Path) -> None:
    packed_set(tmp_path)
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", SHARD_FORMAT, re.S)[0], names)
    tar = tmp_path / "train-00002.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 1  # inside the first image
    tar.write_bytes(content)
    read = names["samples"](tmp_path, "train")
    assert len([next(read) for _ in range(7)]) == 7  # the undamaged first shard
    with pytest.raises(AssertionError):
        next(read)


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_path_in_the_text_exists(page: Path) -> None:
    rooms = "mmsa|shards|launch|tests|benchmarks|docs"
    paths = re.findall(rf"`((?:{rooms})/[\w./-]+)(?:::\w+)?`", page.read_text(encoding="utf-8"))
    assert sorted({path for path in paths if not (ROOT / path).exists()}) == []


def test_each_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(page for page in pages if f"]({page}" not in index) == []
