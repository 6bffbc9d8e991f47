"""The search of `launch study`: space, history rebuilt from directories, claims, pruning."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.__main__ import main as launch_main
from launch.study.page import render
from launch.study.pruning import Judge
from launch.study.question import Study, load_study
from launch.study.search import history
from launch.study.search.directories import COMPLETE, FAILED, PRUNED, TrialDirectories
from launch.study.search.settings import Search
from launch.study.search.summary import best_few, ranked, summary, verdict
from launch.study.search.validations import Validation, read_validations, value_of_best
from launch.study.searching import SearchDriver, check_search, identity_of
from launch.study.workers import Workers
from mmsa.config import load_config
from mmsa.errors import UserError

RATE = {"float": [1e-5, 1e-1], "log": True}
HEAD = {"categorical": ["concat", "gated"]}


def search_of(**changes: Any) -> Search:
    return Search.model_validate({"trials": 12, "space": {"optim.text_lr": RATE}, **changes})


def study_of(**changes: Any) -> Study:
    search = {"trials": 3, "space": {"optim.text_lr": RATE}, **changes.pop("search", {})}
    return Study.model_validate({"settings": ["data.shards=x"], "search": search, **changes})


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"space": {}}, "search.space: "),
        ({"space": {"optim": RATE}}, "'optim' is not a setting"),
        ({"space": {"a.b": {"float": [1, 1]}}}, "[1.0, 1.0] is not a range"),
        ({"space": {"a.b": {"float": [0, 1], "log": True}}}, "needs a range above 0"),
        ({"space": {"a.b": {"float": [0, 1], "int": [0, 1]}}}, "one of float, int and categorical"),
        ({"space": {"a.b": {"categorical": [1, "1"]}}}, "names one value twice"),
        ({"space": {"a.b": HEAD | {"log": True}}}, "log: true is for float and int"),
        ({"space": {"a.b": RATE | {"when": {"a.c": 1}}}}, "a.c, which is not a parameter before"),
        (
            {"space": {"a.c": HEAD, "a.b": RATE | {"when": {"a.c": "late"}}}},
            "when needs a.c=late, which is none of its choices (concat, gated)",
        ),
        ({"sampler": "tpo"}, "search.sampler: "),
        ({"pruner": {"name": "asha", "n_startup_trials": 3}}, "Extra inputs"),
        ({"confirm": {"seeds": [0, 1]}}, "confirm.seeds has 0, the seed of the trials"),
        ({"space": {"run.seed": {"int": [0, 9]}}}, "run.seed= cannot be set"),
    ],
)
def test_a_search_that_cannot_work_is_refused(
    tmp_path: Path, search: dict[str, Any], says: str
) -> None:
    content = {"search": {"trials": 2, "space": {"optim.text_lr": RATE}, **search}}
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_study(file)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"seeds": [1]}, "takes no `seeds`"),
        ({"folds": {"source": "synthetic", "raw": "r"}}, "cannot have folds"),
        ({"variants": {"a": []}}, "needs search.confirm"),
        ({"variants": {"trial-1": []}, "search": {"confirm": {}}}, "called like a trial"),
    ],
)
def test_what_does_not_go_with_a_search(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        study_of(**content)


def test_values_become_overrides_that_a_configuration_reads_as_they_are() -> None:
    space = {
        "optim.text_lr": RATE,
        "train.epochs": {"int": [1, 9]},
        "optim.name": {"categorical": ["adamw", "adam"]},
        "model.fusion.hidden": {"categorical": [[64], [128, 64]]},
        "data.augment": {"categorical": [True, False]},
        "optim.clip_norm": {"categorical": [None, "5e-1"]},
    }
    search = search_of(space=space)
    for values in search.corners():
        config = load_config(None, search.overrides(values))
        assert config.optim.text_lr == values["optim.text_lr"]
        assert config.train.epochs == values["train.epochs"]
    last = load_config(None, ["optim.clip_norm=5e-1", "model.fusion.hidden=[128, 64]"])
    assert last.optim.clip_norm == 0.5
    assert len(search.corners()) == 7  # all first values, then the other one of each
    assert search.space["model.fusion.hidden"].choices == ["[64]", "[128, 64]"]


def test_parameters_under_a_condition() -> None:
    search = search_of(
        space={
            "model.fusion.name": {"categorical": ["concat", "gated", "attention"]},
            "model.fusion.dropout": {"float": [0, 0.5], "when": {"model.fusion.name": "concat"}},
            "model.fusion.num_heads": {
                "int": [1, 8],
                "when": {"model.fusion.name": ["attention", "gated"]},
            },
        }
    )
    corners = search.corners()
    assert {"model.fusion.name": "attention", "model.fusion.num_heads": 8} in corners
    assert {"model.fusion.name": "concat", "model.fusion.dropout": 0.5} in corners
    assert all(len(values) == 2 for values in corners)
    drawn = [propose(search, [], number) for number in range(12)]
    assert {tuple(values) for values in drawn} == {
        ("model.fusion.name", "model.fusion.dropout"),
        ("model.fusion.name", "model.fusion.num_heads"),
    }


def propose(search: Search, trials: Sequence[Any], number: int) -> dict[str, Any]:
    study = history.history(search, "accuracy", trials, lambda _: (), number=number)
    return history.propose(study, search)


def ended(
    trials: TrialDirectories,
    value: float | None,
    values: dict[str, Any],
    *,
    state: str = COMPLETE,
    reported: Sequence[float] = (),
) -> None:
    """As if a driver had trained the next trial."""
    trial = trials.claim(10_000)
    assert trial is not None
    own = [f"{name}={text}" for name, text in values.items()]
    trial.write("trial.json", {"values": values, "settings": own})
    trial.write(
        "result.json",
        {
            "state": state,
            "value": value,
            "step": 10,
            "num_steps": 10,
            "validations": [{"step": 1, "value": one} for one in reported],
        },
    )


@settings(max_examples=10, deadline=None)
@given(
    sampler=st.sampled_from(["tpe", "random"]),
    seed=st.integers(0, 99),
    rates=st.lists(st.floats(1e-5, 1e-1), max_size=14),
)
def test_the_draw_depends_on_seed_number_and_history_alone(
    tmp_path_factory: pytest.TempPathFactory, sampler: str, seed: int, rates: list[float]
) -> None:
    trials = TrialDirectories(tmp_path_factory.mktemp("study"))
    for rate in rates:
        ended(trials, -abs(math.log10(rate) + 3), {"optim.text_lr": rate})
    search = search_of(sampler=sampler, seed=seed)
    number = len(rates)
    first = propose(search, trials.all(), number)
    again = propose(search, TrialDirectories(trials.out).all(), number)  # by another process
    assert first == again
    assert 1e-5 <= first["optim.text_lr"] <= 1e-1
    assert propose(search, trials.all(), number + 1) != first


def test_tpe_learns_from_the_history_and_keeps_off_what_still_runs(tmp_path: Path) -> None:
    trials = TrialDirectories(tmp_path)
    for exponent in range(16):
        rate = 10 ** (-5 + exponent / 4)
        ended(trials, -abs(math.log10(rate) + 3), {"optim.text_lr": rate})
    search = search_of()
    drawn = [propose(search, trials.all(), number)["optim.text_lr"] for number in range(16, 36)]
    near = sum(abs(math.log10(rate) + 3) < 0.7 for rate in drawn)
    assert near >= 14  # of random ones 7 of 20 would be
    random = search_of(sampler="random")
    spread = [propose(random, trials.all(), number)["optim.text_lr"] for number in range(16, 36)]
    assert sum(abs(math.log10(rate) + 3) < 0.7 for rate in spread) < near
    # One that runs at the best place, without a score yet, counts as a bad one.
    for _ in range(6):
        running = trials.claim(100)
        assert running is not None
        running.write("trial.json", {"values": {"optim.text_lr": 1e-3}, "settings": []})
    study = history.history(search, "accuracy", trials.all(), lambda _: ())
    assert [trial.state.name for trial in study.trials[-6:]] == ["RUNNING"] * 6
    drawn = [propose(search, trials.all(), number)["optim.text_lr"] for number in range(22, 42)]
    assert sum(abs(math.log10(rate) + 3) < 0.1 for rate in drawn) <= 5


def test_a_trial_without_values_or_with_nan_counts_as_failed(tmp_path: Path) -> None:
    trials = TrialDirectories(tmp_path)
    ended(trials, None, {"optim.text_lr": 1e-3}, state=FAILED)
    assert trials.claim(9) is not None  # claimed, and its driver killed before it chose
    ended(trials, 0.5, {"optim.text_lr": 1e-2}, reported=[0.4, 0.5])
    study = history.history(search_of(), "accuracy", trials.all(), lambda _: ())
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    assert study.trials[2].intermediate_values == {1: 0.4, 2: 0.5}
    assert study.best_trial.number == 2


def test_each_trial_is_claimed_once_by_many_drivers(tmp_path: Path) -> None:
    claimed: list[int] = []
    start = threading.Barrier(8)

    def claim() -> None:
        own = TrialDirectories(tmp_path)
        start.wait()
        while (trial := own.claim(50)) is not None:
            claimed.append(trial.number)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(50))


def test_another_space_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    trials = TrialDirectories(tmp_path)
    trials.check_space(identity_of(study_of()), write=True)
    trials.check_space(identity_of(study_of(search={"trials": 9, "sampler": "random"})), write=True)
    wider = study_of(search={"space": {"optim.text_lr": {"float": [1e-6, 1], "log": True}}})
    with pytest.raises(UserError, match="trials of another search: space changed"):
        trials.check_space(identity_of(wider), write=True)
    with pytest.raises(UserError, match="settings, metric changed"):
        trials.check_space(
            identity_of(study_of(metric="loss", settings=["data.shards=y"])), write=True
        )


def test_a_space_that_no_run_could_take_is_refused_at_once(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("model: {text_encoder: {name: x}}\n")
    good = study_of(search={"space": {"train.epochs": {"int": [1, 5]}}})
    check_search(good, str(base))
    wrong = study_of(search={"space": {"train.epochs": {"int": [0, 5]}, "optim.txt_lr": RATE}})
    with pytest.raises(UserError, match=r"train.epochs=0(.|\n)*did you mean optim.text_lr"):
        check_search(wrong, str(base))
    with pytest.raises(UserError, match="metric: unknown metric 'auroc'"):
        check_search(study_of(metric="auroc"), str(base))


def test_without_optuna_a_search_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt 'mmsa\[search\]'"):
        history.require_optuna()


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
