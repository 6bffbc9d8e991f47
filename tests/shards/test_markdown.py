"""Class names are shown as they are, in the data card and on the screen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from mmsa.data.manifest import load_manifest
from shards.reports.card import card_text
from shards.reports.markdown import code, plain, table
from shards.reports.summary import print_summary

NAMES = (
    "<b>bold</b>",
    "a|b",
    "[link](http://x)",
    "line\nend",
    "`code`",
    "**_x_**",
    "[/red]",
    "$x$",
)


def test_class_names_are_no_markup(small_packed: Path) -> None:
    manifest = load_manifest(small_packed)
    splits = {
        name: split.model_copy(update={"classes": dict.fromkeys(NAMES, 1)})
        for name, split in manifest.splits.items()
    }
    odd = manifest.model_copy(
        update={"classes": NAMES, "splits": splits, "dataset": "<i>[a]\n# b", "label_rule": "`x`"}
    )
    card = card_text(odd)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["pretty_name"] == "<i>[a]\n# b"
    assert "<" not in body
    assert r"# &lt;i&gt;\[a\] \# b" in body
    cells = r"&lt;b&gt;bold&lt;/b&gt; | a\|b | \[link\](http://x) | line end | \`code\` | "
    assert f"| split | {cells}" in body
    assert r"| \*\*\_x\_\*\* | \[/red\] | \$x\$ | all | shards |" in body
    assert "Label rule: `` `x` ``." in body
    screen = io.StringIO()
    print_summary(odd, console=Console(file=screen, width=300, highlight=False))
    for name in ("<b>bold</b>", "a|b", "[link](http://x)", "`code`", "**_x_**", "[/red]", "[a]"):
        assert name in screen.getvalue()


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_stays_in_its_place(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert "<" not in shown
    assert len(table(["a"], [[text]]).splitlines()) == 3
    fence = code(text).partition(" ")[0] if "`" in text else "`"
    assert code(text).startswith(fence)
    assert fence not in code(text)[len(fence) : -len(fence)]


@pytest.mark.parametrize("name", ["positive", "very_positive", "mvsa-single", "very good", "1"])
def test_plain_names_are_left_alone(name: str) -> None:
    assert plain(name) == name


def test_marks_of_direction_do_not_turn_what_follows() -> None:
    turned = "an\u202egry"
    assert (plain(turned), code(turned)) == ("an gry", "`an gry`")
    assert plain("\u05e9\u05de\u05d7\u200f") == "\u05e9\u05de\u05d7\u200f"  # of its own letters
