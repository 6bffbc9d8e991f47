"""What the tests of searches share: small searches, and trials as drivers leave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.study.question import Study
from launch.study.search.directories import COMPLETE, TrialDirectories
from launch.study.search.settings import Search

RATE = {"float": [1e-5, 1e-1], "log": True}
HEAD = {"categorical": ["concat", "gated"]}


def search_of(**changes: Any) -> Search:
    return Search.model_validate({"trials": 12, "space": {"optim.text_lr": RATE}, **changes})


def study_of(**changes: Any) -> Study:
    search = {"trials": 3, "space": {"optim.text_lr": RATE}, **changes.pop("search", {})}
    return Study.model_validate({"settings": ["data.shards=x"], "search": search, **changes})


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
