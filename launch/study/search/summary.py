"""The trials of a search as JSON, the best of them, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.study.search.directories import COMPLETE, FAILED, PRUNED, TrialDirectory
from launch.study.search.history import history, importances
from launch.study.search.settings import Search
from mmsa.evaluation.scores.sums import smaller_is_better


def ranked(trials: Sequence[TrialDirectory], metric: str) -> list[TrialDirectory]:
    """The complete trials, the best first; of equals the earlier one."""
    sign = 1 if smaller_is_better(metric) else -1
    done = [trial for trial in trials if trial.result.get("state") == COMPLETE]
    return sorted(done, key=lambda one: (sign * one.result["value"], one.number))


def best_few(search: Search, trials: Sequence[TrialDirectory], metric: str) -> dict[str, list[str]]:
    """Name -> settings of the trials to confirm; empty until all trials have ended.

    Of trials with the same settings the first.
    """
    if search.confirm is None or not is_finished(search, trials):
        return {}
    found: dict[str, list[str]] = {}
    for trial in ranked(trials, metric):
        settings = trial.read("trial.json")["settings"]
        if settings not in found.values() and len(found) < search.confirm.best:
            found[trial.name] = settings
    return found


def is_finished(search: Search, trials: Sequence[TrialDirectory]) -> bool:
    """Whether all trials of the search have been claimed and have ended."""
    return len(trials) >= search.trials and all(trial.is_finished for trial in trials)


def summary(search: Search, metric: str, trials: Sequence[TrialDirectory]) -> dict[str, Any]:
    """The search as JSON: its space, every trial, the best one, importances.

    `steps` are those that all trials have made. `importances` is None without Optuna or with too
    few trials.
    """
    rows = [_row(trial) for trial in trials]
    best = ranked(trials, metric)
    states = [row["state"] for row in rows]
    return {
        "metric": metric,
        "direction": "minimize" if smaller_is_better(metric) else "maximize",
        "num_trials": search.trials,
        "num_finished": sum(trial.is_finished for trial in trials),
        "counts": {state: states.count(state) for state in dict.fromkeys(states)},
        "steps": sum(row["step"] or 0 for row in rows),
        "sampler": search.sampler.model_dump(),
        "pruner": search.pruner.model_dump(),
        "seed": search.seed,
        "space": {name: _range(search, name) for name in search.space},
        "ranking": [trial.name for trial in best],  # complete ones, the best first
        "best": best[0].name if best else None,
        "best_value": best[0].result["value"] if best else None,
        "importances": _importances(search, metric, trials),
        "trials": rows,
    }


def _range(search: Search, name: str) -> dict[str, Any]:
    return search.space[name].model_dump(by_alias=True, exclude_defaults=True)


def _row(trial: TrialDirectory) -> dict[str, Any]:
    result = trial.result
    state = result.get("state")
    if state not in (COMPLETE, PRUNED, FAILED):
        state = "running" if trial.is_locked() else "stopped"
    return {
        "name": trial.name,
        "state": state,
        "value": result.get("value"),
        "step": result.get("step"),
        "num_steps": result.get("num_steps"),
        "values": trial.values or {},
        "settings": trial.read("trial.json").get("settings", []),
        "why": result.get("why", ""),
        "run": str(trial.run_dir),
    }


def _importances(
    search: Search, metric: str, trials: Sequence[TrialDirectory]
) -> dict[str, float] | None:
    try:
        finished = [trial for trial in trials if trial.is_finished]
        return importances(history(search, metric, finished, lambda _: ()))
    except ImportError:  # the state is shown without Optuna, too
        return None


def verdict(found: dict[str, Any], *, is_confirmed: bool) -> str:
    """How far the best trial can be believed, as sentences."""
    counts = ", ".join(f"{number} {state}" for state, number in found["counts"].items())
    text = f"{found['num_finished']} of {found['num_trials']} trials have ended ({counts})."
    if found["best"] is None:
        return text
    text += f" The best, {found['best']}, has {found['metric']} {found['best_value']:.4f}"
    text += " on validation."
    tried = found["counts"].get(COMPLETE, 0) + found["counts"].get(PRUNED, 0)
    if tried > 1:
        text += (
            f" It is the best of {tried} on the same validation samples, so this score is partly "
            "luck"
        )
        text += ": "
        text += (
            "what counts is how the best few compare after training with other seeds."
            if is_confirmed
            else "`confirm` trains the best few again with other seeds and compares them with the "
            "default."
        )
    return text
