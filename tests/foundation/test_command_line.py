"""What the commands answer to a mistyped word, and their help."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluate import main as evaluate_main
from launch.__main__ import COMMANDS
from launch.__main__ import main as launch_main
from launch.demo import main as demo_main
from mmsa.__main__ import main as mmsa_main
from mmsa.data.audit import main as audit_main
from mmsa.evaluation.floors.__main__ import main as floors_main
from mmsa.foundation.command_line import CommandParser
from mmsa.foundation.near_names import did_you_mean
from shards.__main__ import main as shards_main
from train import main as train_main

MAINS: dict[str, Callable[[list[str]], int]] = {
    "train.py": train_main,
    "evaluate.py": evaluate_main,
    "mmsa": mmsa_main,
    "mmsa.data.audit": audit_main,
    "mmsa.evaluation.floors": floors_main,
    "launch": launch_main,
    "launch.demo": demo_main,
    "shards": shards_main,
}


@pytest.mark.parametrize(
    ("main", "words", "hint"),
    [
        (mmsa_main, ["predct"], "did you mean predict?"),
        (mmsa_main, ["verify", "x", "--quite"], "arguments: --quite; did you mean --quiet?"),
        (launch_main, ["sttaus"], "did you mean status?"),
        (launch_main, ["sumbit"], "did you mean submit?"),
        (launch_main, ["submit", "trian"], "did you mean train?"),
        (launch_main, ["run", "--engine", "zreo2"], "did you mean zero2?"),
        (launch_main, ["study", "s.yaml", "--parralel", "2"], "did you mean --parallel?"),
        (shards_main, ["pakc"], "did you mean pack?"),
        (shards_main, ["info", "x", "--jsn"], "did you mean --json?"),
        (shards_main, ["pack", "tabel", "x", "y"], "source 'tabel'; did you mean table? known: "),
        (shards_main, ["pack", "table", "x", "y", "--protocol", "cleen"], "did you mean clean? "),
        (shards_main, ["pack", "table", "x", "y", "--protocol", "kfld:1/5"], "mean kfold:K/N? "),
        (train_main, ["--confi=x", "--confug=x"], "did you mean --config?"),
        (evaluate_main, ["x", "--checkpont", "last"], "did you mean --checkpoint?"),
        (evaluate_main, ["x", "--split", "tets"], "did you mean test?"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_mistyped_word_is_answered_with_the_nearest(
    main: Callable[[list[str]], int],
    words: list[str],
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code: object = main(words)
    except SystemExit as error:  # of argparse
        code = error.code
    assert code == 2
    assert hint in capsys.readouterr().err


def test_what_is_like_nothing_has_no_hint() -> None:
    assert did_you_mean("xyz", ["predict", "verify"]) == ""
    assert did_you_mean("", []) == ""


@pytest.mark.parametrize(
    "command",
    [
        "train.py",
        "evaluate.py",
        "-m mmsa",
        *[f"-m mmsa {name}" for name in ("predict", "verify", "soup", "serve", "export")],
        "-m mmsa.data.audit",
        "-m mmsa.evaluation.floors",
        "-m launch",
        *[f"-m launch {name}" for name in COMMANDS],
        "-m launch.demo",
        "-m shards",
        *[f"-m shards {name}" for name in ("pack", "merge", "push", "verify", "info")],
        *[f"-m shards {name}" for name in ("index", "protocols", "leaks", "synthetic")],
    ],
)
def test_help_fits_a_terminal_and_names_the_command(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name, *commands = command.removeprefix("-m ").split()
    with pytest.raises(SystemExit) as ended:
        MAINS[name]([*commands, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    called = command if command.endswith(".py") else f"python {command}"
    assert said.startswith(f"usage: {called} [-h]")
    assert [line for line in said.splitlines() if len(line) > 80] == []


def test_a_description_is_filled_and_its_examples_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    words = "one two three four five six\nseven.\n\n    x  1\n    x  2\n"
    said = CommandParser(prog="x", description=words).format_help()
    assert "\none two three four five six\nseven.\n\n    x  1\n    x  2\n\n" in said
    monkeypatch.setenv("COLUMNS", "20")
    said = CommandParser(prog="x", description=words).format_help()
    assert "\none two three four\nfive six seven.\n\n    x  1\n    x  2\n\n" in said
