"""Optuna's study, rebuilt in memory from the directories of the trials.

Nothing is stored by Optuna: its database and its journal file tear on network file systems. Trials
that still run are part of the history, so that workers do not try the same values (`constant_liar`
of TPE). The draws of a trial depend on the seed, its number and the history alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from launch.study.search.directories import COMPLETE, FAILED, PRUNED, TrialDirectory
from launch.study.search.settings import Parameter, Search, Value
from mmsa.errors import UserError
from mmsa.evaluation.scores.sums import smaller_is_better
from mmsa.foundation.hashed_random import stream_key
from mmsa.foundation.parsing import parse_json

if TYPE_CHECKING:  # an optional package
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_NAME = "mmsa"  # Hyperband derives a trial's bracket from it and the trial's number
ValuesSoFar = Callable[[TrialDirectory], Sequence[float]]


def require_optuna() -> None:
    """Raise `UserError` without Optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            "the study has a search, which needs Optuna, and it is not installed; "
            "pip install -c constraints.txt 'mmsa[search]', or leave out `search`"
        ) from None


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution of a range."""
    from optuna import distributions

    if parameter.floats is not None:
        return distributions.FloatDistribution(*parameter.floats, log=parameter.log)
    if parameter.ints is not None:
        return distributions.IntDistribution(*parameter.ints, log=parameter.log)
    return distributions.CategoricalDistribution(parameter.choices)


def history(
    search: Search,
    metric: str,
    trials: Sequence[TrialDirectory],
    values_so_far: ValuesSoFar,
    *,
    number: int = 0,
) -> Study:
    """The study of all `trials` for the sampler of trial `number`.

    `values_so_far` are the values of a running trial at its validations; of the others they are in
    its result. Trial N of the study is trial N of the search: one without values, which its driver
    has yet to choose, counts as failed until then.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=_NAME,
        direction="minimize" if smaller_is_better(metric) else "maximize",
        sampler=sampler_of(search, number),
        pruner=pruner_of(search, trials),
    )
    distributions = {name: distribution_of(one) for name, one in search.space.items()}
    known = {one.number: one for one in trials}
    for place in range(max(known, default=-1) + 1):
        study.add_trial(_as_optuna_has_it(known.get(place), distributions, values_so_far))
    return study


def _as_optuna_has_it(
    trial: TrialDirectory | None,
    distributions: dict[str, BaseDistribution],
    values_so_far: ValuesSoFar,
) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    if trial is None or trial.values is None:
        return create_trial(state=TrialState.FAIL)
    result, values = trial.result, trial.values
    state = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}.get(
        result.get("state", ""), TrialState.RUNNING
    )
    known = [each["value"] for each in result.get("validations", ())]
    reported = known if trial.is_finished else values_so_far(trial)
    attributes = trial.read("judged.json").get("attributes", {})
    return create_trial(
        state=state,
        value=result["value"] if state == TrialState.COMPLETE else None,
        params=values,
        distributions={name: distributions[name] for name in values},
        intermediate_values={
            place: math.nan if value is None else value
            for place, value in enumerate(reported, start=1)
        },
        system_attrs=dict(attributes),
    )


def sampler_of(search: Search, number: int) -> Any:
    """The sampler, whose draws depend on the seed of the search and the number of the trial."""
    from optuna import samplers

    options = search.sampler.model_dump(exclude={"name"})
    options["seed"] = stream_key("search", search.seed, number) % 2**32
    if search.sampler.name == "tpe":
        return samplers.TPESampler(constant_liar=True, **options)
    if search.sampler.name == "gp":
        return samplers.GPSampler(**options)
    return samplers.RandomSampler(**options)


def pruner_of(search: Search, trials: Sequence[TrialDirectory]) -> Any:
    """The pruner; its steps are numbers of validations, from 1.

    Optuna's count from 0: the steps before the N-th, and a longest trial of one more than its last.
    """
    from optuna import pruners

    options = search.pruner.model_dump(exclude={"name"})
    if search.pruner.name == "hyperband":
        finished = [trial.result for trial in trials if trial.result.get("state") == COMPLETE]
        longest = max((len(result.get("validations", ())) for result in finished), default=0)
        # "auto" prunes nothing while no trial is complete.
        return pruners.HyperbandPruner(
            **options | {"max_resource": options["max_resource"] or longest or "auto"}
        )
    if search.pruner.name == "median":
        options["n_warmup_steps"] += 1
    kinds: dict[str, Any] = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "asha": pruners.SuccessiveHalvingPruner,
    }
    return kinds[search.pruner.name](**options)


def propose(study: Study, search: Search) -> dict[str, Value]:
    """The values of the next trial: those of its parameters whose `when` is satisfied."""
    asked = study.ask()
    values: dict[str, Value] = {}
    for name, parameter in search.space.items():
        if not parameter.is_active(values):
            continue
        if parameter.floats is not None:
            drawn = asked.suggest_float(name, *parameter.floats, log=parameter.log)
            values[name] = _readable(drawn, *parameter.floats)
        elif parameter.ints is not None:
            values[name] = asked.suggest_int(name, *parameter.ints, log=parameter.log)
        else:
            values[name] = asked.suggest_categorical(name, parameter.choices)
    return values


def _readable(value: float, low: float, high: float) -> float:
    """The value with four significant digits, inside its range."""
    return min(high, max(low, float(f"{value:.4g}")))


def is_hopeless(study: Study, number: int) -> tuple[bool, dict[str, Any]]:
    """Whether the pruner stops trial `number` after its last validation, and what it noted.

    The notes are JSON: with them the next rebuilt study judges as this one would (the rungs of
    successive halving).
    """
    trial = study.trials[number]
    hopeless = study.pruner.prune(study, trial)
    attributes = study.trials[number].system_attrs
    return hopeless, parse_json(json.dumps(attributes))


def importances(study: Study) -> dict[str, float] | None:
    """Parameter -> share of the variance between good and other trials that it explains.

    By PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023). None where the trials are too few, or
    all alike, to say.
    """
    import optuna
    from optuna.trial import TrialState

    done = study.get_trials(states=(TrialState.COMPLETE,))
    if len(done) < 4 or len({trial.value for trial in done}) < 2:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):
        return None
    return {name: float(value) for name, value in found.items()}
