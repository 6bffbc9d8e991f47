"""`metrics.jsonl`: what is written, and what a resumed run cuts back."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from mmsa.process.runtime import World, set_up_logging
from mmsa.training.tracking import METRICS_NAME, Tracker, cut_back, few

VALIDATION = {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7, "weighted_f1": 0.74}


def tracker(run_dir: Path, start_step: int = 0, *, enabled: bool = True) -> Tracker:
    return Tracker(
        run_dir, start_step=start_step, num_steps=10, enabled=enabled, samples_per_step=8
    )


def lines(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / METRICS_NAME).read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_each_measure_is_a_line(tmp_path: Path) -> None:
    one = tracker(tmp_path)
    one.advance()
    one.train(1, loss=1.5, rates={"text": 1e-5, "head": 1e-3}, grad_norm=2.0)
    one.validation(1, 0.333333, VALIDATION)
    one.close()
    assert one.latest["num_steps"] == 10
    assert one.latest["loss"] == 1.5
    assert one.latest["validation"] == {"step": 1, **VALIDATION}
    train, validation = lines(tmp_path)
    assert train.pop("samples_per_s") > 0
    assert train == {
        "kind": "train",
        "step": 1,
        "loss": 1.5,
        "grad_norm": 2.0,
        "lr_text": 1e-5,
        "lr_head": 1e-3,
    }
    assert validation == {"kind": "validation", "step": 1, "epoch": 0.3333, **VALIDATION}
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("is_a_terminal", [True, False])
def test_the_log_file_has_the_losses_and_a_terminal_a_bar(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_a_terminal: bool,
) -> None:
    set_up_logging(World(), tmp_path / "log.txt")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_a_terminal)
    one = tracker(tmp_path)
    one.advance()
    one.train(1, loss=1.5, rates={}, grad_norm=2.0)
    one.close()
    logging.getLogger("mmsa").handlers.clear()
    said = capsys.readouterr()
    assert "step 1/10  loss 1.5000" in (tmp_path / "log.txt").read_text()
    assert ("step 1/10" in said.out) is not is_a_terminal
    assert ("loss=1.5000" in said.err) is is_a_terminal


@pytest.mark.parametrize(
    "odd",
    ["[1]", "7", '"step"', "{}", '{"step": "2"}', '{"step": null}', "[" * 100_000, "{"],
)
def test_odd_lines_are_removed_and_counted(
    odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("mmsa"), "propagate", True)
    file = tmp_path / METRICS_NAME
    good = '{"kind": "train", "step": 1, "odd": "\u2028"}\n'
    file.write_text(f"{odd}\n{good}{odd}\n")
    cut_back(file, 1)
    assert file.read_text() == good
    assert f"removed 2 lines of {file} that are not measures of a step" in caplog.text


def test_a_step_left_out_is_a_line_and_goes_with_the_resume(tmp_path: Path) -> None:
    one = tracker(tmp_path)
    one.train(1, loss=1.5, rates={}, grad_norm=2.0)
    one.skipped(2, loss=float("nan"), grad_norm=float("inf"), keys=["a", "b"])
    one.close()
    skipped = lines(tmp_path)[1]
    assert skipped == {
        "kind": "skipped",
        "step": 2,
        "loss": "nan",
        "grad_norm": "inf",
        "keys": ["a", "b"],
    }
    cut_back(tmp_path / METRICS_NAME, 1)
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    one = tracker(tmp_path, enabled=False)
    one.advance()
    one.train(1, loss=1.5, rates={}, grad_norm=2.0)
    one.skipped(2, loss=1.5, grad_norm=2.0, keys=["a"])
    one.validation(1, 1.0, VALIDATION)
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_goes_on_behind_its_checkpoint(tmp_path: Path) -> None:
    first = tracker(tmp_path)
    for step in range(1, 6):
        first.train(step, loss=float(step), rates={}, grad_norm=0.0)
    first.close()
    second = tracker(tmp_path, start_step=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    second.train(4, loss=-4.0, rates={}, grad_norm=0.0)
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, -4.0),
    ]


@pytest.mark.parametrize(
    "torn", [b'{"kind": "train", "step": 2, "lo', b"{", b'{"kind"', b"\0" * 40, b"\xff\xfe{"]
)
def test_a_torn_last_line_is_removed(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / METRICS_NAME
    whole = (
        b'{"kind": "train", "step": 1, "loss": 1.0}\n{"kind": "train", "step": 2, "loss": 1.0}\n'
    )
    file.write_bytes(whole + torn)
    cut_back(file, 2)
    assert file.read_bytes() == whole
    cut_back(file, 1)
    assert lines(tmp_path) == [{"kind": "train", "step": 1, "loss": 1.0}]
    cut_back(file, 0)
    assert file.read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_nothing_to_cut_is_no_error(tmp_path: Path) -> None:
    cut_back(tmp_path / METRICS_NAME, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_skipped_step_is_written_with_all_its_samples(tmp_path: Path) -> None:
    nan = {"loss": float("nan"), "grad_norm": float("inf"), "keys": list("gfedcba")}
    for enabled in (True, False):
        one = tracker(tmp_path, enabled=enabled)
        one.skipped(2, **nan)
        one.close()
    assert lines(tmp_path)[0] == {
        "kind": "skipped",
        "step": 2,
        "loss": "nan",
        "grad_norm": "inf",
        "keys": list("gfedcba"),
    }


def test_a_step_of_many_samples_is_told_in_a_line() -> None:
    assert few(["a", "b"]) == "a b"
    assert few(list("abcdefg")) == "a b c d e and 2 more (metrics.jsonl)"
