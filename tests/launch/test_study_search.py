"""The search of `launch study`: its space, history rebuilt from directories, claims."""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searches import HEAD, RATE, ended, search_of, study_of

from launch.study.question import load_study
from launch.study.search import charts, history
from launch.study.search.directories import FAILED, TrialDirectories
from launch.study.search.settings import Search
from launch.study.searching import check_search, identity_of
from mmsa.config import load_config
from mmsa.errors import UserError
from mmsa.evaluation.report.page.charts import svg


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
        (
            {"pruner": {"name": "asha", "n_startup_trials": 3}},
            "unknown key search.pruner.n_startup_trials; known here: name, ",
        ),
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


@pytest.mark.parametrize(("warmup", "first_judged"), [(0, 1), (1, 2), (2, 3)])
def test_the_median_pruner_spares_the_first_validations(
    tmp_path: Path, warmup: int, first_judged: int
) -> None:
    trials = TrialDirectories(tmp_path)
    ended(trials, 0.9, {"optim.text_lr": 1e-3}, reported=[0.9] * 4)
    running = trials.claim(9)
    assert running is not None
    running.write("trial.json", {"values": {"optim.text_lr": 1e-2}, "settings": []})
    pruner = {"name": "median", "n_startup_trials": 1, "n_warmup_steps": warmup}
    search = search_of(pruner=pruner)

    def is_stopped_after(validations: int) -> bool:
        values = [0.1] * validations
        study = history.history(search, "accuracy", trials.all(), lambda _: values)
        return history.is_hopeless(study, running.number)[0]

    stopped = [number for number in range(1, 5) if is_stopped_after(number)]
    assert stopped == list(range(first_judged, 5))


@pytest.mark.parametrize(("given", "brackets"), [(None, 2), (9, 3)])
def test_hyperband_takes_the_validations_of_the_longest_finished_trial(
    tmp_path: Path, given: int | None, brackets: int
) -> None:
    """Eight validations make the brackets of 1 and 3; a ninth would add one that none reaches."""
    trials = TrialDirectories(tmp_path)
    ended(trials, 0.5, {"optim.text_lr": 1e-2}, reported=[0.5] * 3)
    ended(trials, 0.9, {"optim.text_lr": 1e-3}, reported=[0.9] * 8)
    running = trials.claim(9)
    assert running is not None
    running.write("trial.json", {"values": {"optim.text_lr": 1e-2}, "settings": []})
    search = search_of(pruner={"name": "hyperband", "max_resource": given})
    study = history.history(search, "accuracy", trials.all(), lambda _: [0.5])
    history.is_hopeless(study, running.number)
    assert len(study.pruner._pruners) == brackets


def test_choices_are_shown_as_they_are_written() -> None:
    """Not as mathematics, which `$a_{$` is not."""
    row = {"name": "trial-0000", "state": "complete", "value": 0.5, "values": {"x.y": "$a_{$"}}
    search = {"space": {"x.y": {"categorical": ["$a_{$", "b"]}}, "trials": [row]}
    found = {**search, "ranking": ["trial-0000"], "metric": "accuracy", "direction": "maximize"}
    assert "$a_{$" in svg(lambda axes: charts.draw_parallel(axes, found))


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
