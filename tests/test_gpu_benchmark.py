"""The stages of `make gpu` go their whole way on a machine without a GPU, and say so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.__main__ import main
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.evaluations import compared
from benchmarks.gpu.outcome import FAIL, MEASURED, NOT_RUN, PASS, NotRun, Outcome, Results
from benchmarks.gpu.several import worlds
from benchmarks.gpu.speed import table
from benchmarks.gpu.stages import SEVERAL, STAGES

ROOT = Path(__file__).resolve().parent.parent
LAUNCHED = {"processes", "endings", "peers", *SEVERAL}
# Further settings of what `changes` measures.
LEFT_OUT = {"batches", "workers", "engines"}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.timeout(900)  # many short runs; long only where the machine has other work
def test_every_stage_of_one_process_is_run_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [stage.name for stage in STAGES if stage.name not in LEFT_OUT]
    words = ["--tiny", "--seconds", "0.05", "--out", str(tmp_path), "--stages", *stages]
    assert main(words, in_process=True) == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert list(found) == stages
    told = {
        name: {one["name"]: one["verdict"] for one in s["findings"]} for name, s in found.items()
    }
    # What ran on CPU processes is no answer for a GPU.
    assert {stage["verdict"] for stage in found.values()} == {NOT_RUN}
    assert all(told[name]["GPU"] == NOT_RUN for name in told)
    assert {name for name in told if told[name].get("all") == NOT_RUN} == LAUNCHED
    assert told["resume"]["single"] == told["losses"]["single, float32"] == PASS
    assert found["streams"]["figures"] == {"on_gpu": False, "same": 3, "of": 3, "wrong_reports": 0}
    assert found["losses"]["figures"]["cpu"] == found["losses"]["figures"]["single"]
    assert found["precisions"]["figures"]["no"]["apart"] == 0
    assert len(found["trace"]["figures"]["top"]) == 10
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    rows = found["changes"]["figures"]["rows"]
    assert [row["name"] for row in rows][:: len(rows) - 1] == ["baseline", "baseline"]
    assert all(row["samples_per_s"] > 0 and row["tflops"] > 0 for row in rows)
    stalls = {row["name"]: row["stalls"] for row in found["checkpoint"]["figures"]["rows"]}
    assert set(stalls) == {"written at once", "written by a thread"}
    assert "| streams | batches copied ahead | not run |" in (tmp_path / "results.md").read_text()

    began, _ = time.time(), capsys.readouterr()
    assert main(words, in_process=True) == 0
    assert capsys.readouterr().out.count("found before") == len(stages)
    assert all(file.stat().st_mtime < began for file in (tmp_path / "stages").iterdir())


def test_a_stage_that_would_pass_the_limit_is_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--stages", "memory", "--minutes", "0.5", "--out", str(tmp_path)]
    assert main(words, in_process=True) == 0
    assert re.search(r"not run   takes about 40 s, and \d+ are left", capsys.readouterr().out)
    assert list((tmp_path / "stages").iterdir()) == []  # to be tried again


def test_all_of_the_stages_take_at_most_25_minutes() -> None:
    assert sum(stage.estimate_s for stage in STAGES if stage.name not in SEVERAL) <= 25 * 60


def test_the_gravest_finding_is_the_verdict() -> None:
    outcome = Outcome()
    assert outcome.verdict == NOT_RUN
    outcome.measured("speed", "1 sample/s")
    assert (outcome.verdict, outcome.done) == (MEASURED, True)
    with outcome.asking("right?") as answer:
        answer(True, "yes")
    assert (outcome.verdict, outcome.done) == (PASS, True)
    with outcome.asking("on two GPUs?"):
        raise NotRun("needs two GPUs")
    assert (outcome.verdict, outcome.done) == (NOT_RUN, True)
    with outcome.asking("broken?"):
        raise RuntimeError("CUDA error:\n an illegal memory access")
    assert (outcome.verdict, outcome.done) == (FAIL, False)
    assert outcome.lines()[-1].endswith(
        "fail      RuntimeError: CUDA error: an illegal memory access"
    )


def test_outcomes_of_another_machine_do_not_count(tmp_path: Path) -> None:
    outcome = Outcome(table="| x |")
    outcome.measured("speed", "1 sample/s")
    Results(tmp_path, {"device": "H100"}).write("batches", outcome)
    assert Results(tmp_path, {"device": "H100"}).read("batches") == outcome
    assert Results(tmp_path, {"device": "H200"}).read("batches") is None


def test_predictions_are_compared_by_key() -> None:
    first = {"a": ("positive", [1.0, 0.0]), "b": ("negative", [0.0, 0.5])}
    second = {"b": ("positive", [0.5, 0.25]), "a": ("positive", [1.0, 0.0])}
    assert compared(first, second) == (1, 0.5)


def test_a_row_is_compared_with_the_mean_of_the_baselines() -> None:
    def row(name: str, per_s: float) -> dict[str, Any]:
        figures = {"batch": 8, "workers": 0, "ms_per_step": 1.0, "waiting": 0.5, "memory_mib": 1}
        figures |= {"tflops": 2.0, "new_shapes": 0}
        return {"name": name, "precision": "bf16", "samples_per_s": per_s, **figures}

    failed = {"name": "batch 1024", "failed": "out of memory"}
    lines = table([row("baseline", 90), row("x", 50), failed, row("baseline", 110)], 4.0)
    assert "| x | 8 | 0 | 50 | 0.50 | 1.0 | 50% | 2.0 | 50% | 1 | 0 |" in lines
    assert "| batch 1024 |  |  | out of memory |" in lines


def test_worlds_double_up_to_all_gpus(tmp_path: Path) -> None:
    assert worlds(Bench(tmp_path, False, 6, 1.0)) == [1, 2, 4, 6]
    with pytest.raises(NotRun, match="needs two GPUs"):
        worlds(Bench(tmp_path, False, 1, 1.0))


@pytest.mark.soak
def test_the_whole_tiny_form_with_its_launches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path)]
    command += ["--minutes", "120"]  # no stage is left out or cut short
    ended = subprocess.run(command, cwd=ROOT, timeout=3500, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    found = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert list(found) == [stage.name for stage in STAGES]
    assert {stage["verdict"] for stage in found.values()} == {NOT_RUN}  # none has failed
    told = {
        name: {one["name"]: one["verdict"] for one in s["findings"]} for name, s in found.items()
    }
    assert {*told["endings"].values(), *told["resume"].values()} == {PASS, NOT_RUN}
    assert told["endings"]["the same bytes in the end"] == PASS
    assert told["processes"]["a killed loader process"] == PASS
    assert told["timeout"]["a rank that hangs"] == PASS
    assert [told["order"][engine] for engine in ("ddp", "zero2", "zero3")] == [PASS] * 3
    engines = ("single", "ddp", "zero1", "zero2", "zero3")
    assert [told["losses"][f"{engine}, float32"] for engine in engines] == [PASS] * 5
    assert [told["resume"][engine] for engine in ("ddp", "zero2", "zero3")] == [PASS] * 3
    figures = {name: stage["figures"] for name, stage in found.items()}
    assert [(row["world"], row["name"]) for row in figures["scaling"]["rows"]] == [
        *[(1, "ddp"), (1, "zero3"), (2, "ddp"), (2, "zero3")]
    ]
    assert [row["mib"] for row in figures["bandwidth"]["rows"]] == [1, 4]
    assert [row["name"] for row in figures["engines"]["rows"]] == [
        "single",
        "ddp",
        "zero2",
        "zero3",
    ]
    assert {"accelerate", "ours"} <= {row["arm"] for row in figures["peers"]["rows"]}
    assert set(figures["syncs"]) == {"ddp", "zero2", "zero3"}
