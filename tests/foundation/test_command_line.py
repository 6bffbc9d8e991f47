"""What the commands answer to a mistyped word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluate import main as evaluate_main
from launch.__main__ import main as launch_main
from mmsa.__main__ import main as mmsa_main
from mmsa.foundation.near_names import did_you_mean
from shards.__main__ import main as shards_main
from train import main as train_main


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
