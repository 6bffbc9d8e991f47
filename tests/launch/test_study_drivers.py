"""The drivers of a search: which runs are stopped, what becomes of them, and the page."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from searches import RATE, ended, study_of

from launch.__main__ import main as launch_main
from launch.study.page import render
from launch.study.pruning import Judge
from launch.study.question import Study
from launch.study.search.directories import COMPLETE, FAILED, PRUNED, TrialDirectories
from launch.study.search.summary import best_few, ranked, summary, verdict
from launch.study.search.validations import Validation, read_validations, value_of_best
from launch.study.searching import SearchDriver
from launch.study.workers import Workers


def write_validations(run_dir: Path, values: Sequence[float]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    lines = ['{"kind": "train", "step": 1, "loss": 1.0}']
    lines += [
        json.dumps(
            {"kind": "validation", "step": 5 * number, "loss": 2 - value, "accuracy": value}
            | {"weighted_f1": value}
        )
        for number, value in enumerate(values, start=1)
    ]
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "validation", "st']))


def test_validations_are_read_while_they_are_written(tmp_path: Path) -> None:
    assert read_validations(tmp_path, "accuracy", "loss") == []
    write_validations(tmp_path, [0.5, 0.7, 0.6])
    found = read_validations(tmp_path, "accuracy", "loss")
    assert found == [(5, 0.5, 1.5), (10, 0.7, 1.3), (15, 0.6, 1.4)]
    assert value_of_best(found, "loss") == 0.7
    late = [Validation(5, 0.1, 0.9), Validation(10, 0.2, 0.9), Validation(15, 0.3, math.nan)]
    assert value_of_best(late, "accuracy") == 0.1  # the first of equals, as the run exports it
    assert math.isnan(value_of_best([], "accuracy"))


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband"])
def test_a_bad_trial_is_stopped_and_a_good_one_is_not(tmp_path: Path, pruner: str) -> None:
    options: dict[str, Any] = {"name": pruner}
    if pruner != "median":
        options |= {"reduction_factor": 2}
    study = study_of(metric="accuracy", search={"trials": 20, "pruner": options})
    trials = TrialDirectories(tmp_path)
    for number in range(8):
        # Judged as it ran, so that its rungs are noted.
        trial = trials.claim(20)
        assert trial is not None
        trial.write("trial.json", {"values": {"optim.text_lr": 1e-3}, "settings": []})
        values = [0.5 + number / 100 + place / 50 for place in range(4)]
        judge(study, trials, trial, values)
        finish(trial, values)
    stopped = {}
    for name, level in (("bad", 0.1), ("good", 0.9)):
        trial = trials.claim(20)
        assert trial is not None
        trial.write("trial.json", {"values": {"optim.text_lr": 1e-3}, "settings": []})
        stopped[name] = judge(study, trials, trial, [level] * 4)
        finish(trial, [level] * 4)
    assert stopped["bad"] in (1, 2)
    assert stopped["good"] is None


def judge(
    study: Study, trials: TrialDirectories, trial: Any, values: Sequence[float]
) -> int | None:
    """The validation after which the run is sent SIGTERM; each is judged by a new driver."""
    for count in range(1, len(values) + 1):
        write_validations(trial.run_dir, values[:count])
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        try:
            Judge(study, trials, trial, "accuracy")(child)
            if trial.result:
                assert child.wait(10) == -15
                return count
        finally:
            child.kill()
            child.wait()
    return None


def finish(trial: Any, values: Sequence[float]) -> None:
    trial.write(
        "result.json",
        {
            "state": PRUNED if trial.result else COMPLETE,
            "value": max(values),
            "validations": [{"step": 1, "value": value} for value in values],
        },
    )


def test_what_a_driver_makes_of_ends_of_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is a program of three lines, which writes what train.py would."""
    study = study_of(metric="accuracy", search={"trials": 5, "sampler": "random"})
    script = tmp_path / "run.py"
    script.write_text(RUN)
    driver = driver_of(study, tmp_path, script)
    assert driver.work() is None
    results = [trial.result for trial in TrialDirectories(tmp_path).all()]
    assert [one["state"] for one in results] == [COMPLETE, FAILED, FAILED, FAILED, COMPLETE]
    assert results[0]["value"] == 0.6
    assert results[1]["why"] == "accuracy is not a number on validation"
    assert "no such thing" in results[2]["why"]
    attempts = (tmp_path / "search/trial-0003/run.jsonl").read_text().splitlines()
    assert len(attempts) == 3  # and no more
    told = capsys.readouterr().out
    assert "[5/5] trial-0004: complete after 10 of 10 steps, accuracy 0.6000" in told
    assert driver_of(study, tmp_path, script).work() is None
    assert "trains" not in capsys.readouterr().out  # nothing is trained twice
    # A driver that was killed: the trial is taken up, with the values that it had.
    trial = TrialDirectories(tmp_path).all()[4]
    before = trial.read("trial.json")
    (trial.path / "result.json").unlink()
    (trial.run_dir / "status.json").unlink()
    assert driver_of(study, tmp_path, script).work() is None
    trial = TrialDirectories(tmp_path).all()[4]
    assert trial.result["state"] == COMPLETE
    assert trial.read("trial.json") == before
    assert (trial.run_dir / "starts").read_text() == "xx"


RUN = """
import json, pathlib, sys
run = pathlib.Path(next(w for w in sys.argv if w.startswith("run.dir=")).partition("=")[2])
number = int(run.parent.name[-4:])
run.mkdir(exist_ok=True)
with (run / "starts").open("a") as starts: starts.write("x")
code, state = {2: (2, "failed"), 3: (1, "failed")}.get(number, (0, "done"))
value = float("nan") if number == 1 else 0.6
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in [
    {"kind": "validation", "step": 5, "accuracy": 0.5, "weighted_f1": 0.5},
    {"kind": "validation", "step": 10, "accuracy": value, "weighted_f1": 0.6}]))
(run / "status.json").write_text(json.dumps(
    {"state": state, "exit_code": code, "step": 10, "num_steps": 10, "reason": "no such thing"}))
sys.exit(code)
"""


def test_a_signal_reaches_a_run_that_is_just_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, ended = Workers(), []
    begin = subprocess.Popen

    def slow(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = begin(*words, **options)
        os.kill(os.getpid(), signal.SIGUSR1)
        while workers.stopping is None:  # it has been handled, and nobody knows of the child
            time.sleep(0.01)
        return child

    monkeypatch.setattr("launch.study.workers.subprocess.Popen", slow)
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    stopped = workers.work(lambda: ended.append(workers.run(sleeping, tmp_path / "log")))
    assert (stopped, ended) == (signal.SIGUSR1, [-signal.SIGTERM])


def driver_of(study: Study, out: Path, script: Path) -> SearchDriver:
    class Scripted(Workers):
        def script(self, script_name: str, words: Sequence[str]) -> list[str]:
            assert script_name == "train.py"
            return [sys.executable, str(script), *words]

    base = out / "base.yaml"
    base.write_text("model: {text_encoder: {name: x}}\n")
    return SearchDriver(study, base, out, Scripted())


def test_a_pruned_run_becomes_small_and_is_not_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of(metric="accuracy", search={"trials": 1, "pruner": "median"})
    trials = TrialDirectories(tmp_path)
    trial = trials.claim(1)
    assert trial is not None
    # Killed between the decision and the end of the run.
    trial.write("trial.json", {"values": {"optim.text_lr": 1e-3}, "settings": []})
    trial.write("result.json", {"state": "pruning", "step": 5})
    write_validations(trial.run_dir, [0.1])
    for folder in ("checkpoints/step-00000005", "exports/step-00000005"):
        (trial.run_dir / folder).mkdir(parents=True)
    (trial.run_dir / "best").symlink_to("exports/step-00000005")
    (trial.run_dir / "status.json").write_text(
        json.dumps({"state": "preempted", "step": 6, "num_steps": 20})
    )
    script = tmp_path / "run.py"
    script.write_text("raise SystemExit('it was resumed')")
    assert driver_of(study, tmp_path, script).work() is None
    assert "pruned after 6 of 20 steps, accuracy 0.1000" in capsys.readouterr().out
    assert TrialDirectories(tmp_path).all()[0].result["state"] == PRUNED
    left = sorted(path.name for path in trial.run_dir.iterdir())
    assert left == ["metrics.jsonl", "status.json"]


def test_the_best_few_become_variants_when_all_have_ended(tmp_path: Path) -> None:
    study = study_of(search={"trials": 5, "confirm": {"best": 2, "seeds": [7, 8]}})
    assert study.search is not None
    assert (list(study.variants), study.seeds) == (["default"], [7, 8])
    trials = TrialDirectories(tmp_path)
    for value, rate in ((0.5, 1e-3), (0.8, 1e-2), (0.8, 1e-2), (0.7, 1e-4)):
        ended(trials, value, {"optim.text_lr": rate})
    assert best_few(study.search, trials.all(), "accuracy") == {}  # one has not ended
    ended(trials, 0.9, {"optim.text_lr": 1e-5}, state=PRUNED)
    chosen = best_few(study.search, trials.all(), "accuracy")
    assert chosen == {"trial-0001": ["optim.text_lr=0.01"], "trial-0003": ["optim.text_lr=0.0001"]}
    assert list(study.with_variants(chosen).variants) == ["default", *chosen]
    assert ranked(trials.all(), "loss")[0].number == 0  # less is better


@pytest.mark.parametrize(
    ("confirm", "says"), [(None, "a search alone"), ({"best": 1}, "1 of 3 trials have ended")]
)
def test_test_is_not_opened_before_a_search_has_a_winner(
    tmp_path: Path, confirm: dict[str, Any] | None, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    search = {"trials": 3, "space": {"optim.text_lr": RATE}, "confirm": confirm}
    file.write_text(json.dumps({"search": search}))
    ended(TrialDirectories(out), 0.5, {"optim.text_lr": 1e-3})
    assert launch_main(["study", str(file), "--out", str(out), "--final"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 9])
def test_the_page_of_a_search(tmp_path: Path, count: int, page_of: Callable[..., str]) -> None:
    space = {"optim.text_lr": RATE, "optim.name": {"categorical": ["adamw", "adam"]}}
    study = study_of(metric="accuracy", search={"trials": 10, "space": space})
    trials = TrialDirectories(tmp_path)
    for number in range(count):
        values = {
            "optim.text_lr": 10 ** -(1 + number / 4),
            "optim.name": ["adamw", "adam"][number % 2],
        }
        ended(trials, 0.5 + number / 100, values, state=PRUNED if number == 3 else COMPLETE)
    page, found = page_of(study, trials)
    assert found["best"] == f"trial-{count - 1:04d}"
    assert page.count("<svg") == (3 if count == 9 else 1)
    assert ("partly luck" in page) == (count == 9)
    assert f"{count} of 10 trials have ended" in page
    assert "<h2>Variants</h2>" not in page
    if count == 9:
        assert set(found["importances"]) == set(space)
        assert sum(found["importances"].values()) == pytest.approx(1)


@pytest.fixture
def page_of() -> Callable[..., Any]:
    def rendered(study: Study, trials: TrialDirectories) -> tuple[str, dict[str, Any]]:
        assert study.search is not None
        searched = summary(study.search, study.metric, trials.all())
        found: dict[str, Any] = {
            "question": "Which?",
            "metric": study.metric,
            "compared_with": "",
            "variants": [],
            "num_runs": 0,
            "num_done": 0,
            "best": None,
            "differences": [],
            "search": searched,
        }
        assert "trials have ended" in verdict(searched, is_confirmed=False)
        return render(found, None, {}, "search").decode(), searched

    return rendered
