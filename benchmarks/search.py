"""The search of `launch study`: TPE with pruning against random search, and what a driver costs.

    python -m benchmarks.search [--trials 40] [--repeats 5] [--real SHARDS] [--json FILE]

Without --real the learning curves are a formula with a known optimum, and no process is started:
sampler, pruner and directories are those of the product. With --real each trial trains the model of
`make demo` on SHARDS (build/demo/shards), under the product's own driver.

A repeat runs random search, then TPE with the median pruner from the same seed and with the same
number of trials, and counts the steps until the latter has a trial as good as random search's best.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write_json
from launch.site import ROOT
from launch.study.question import Study
from launch.study.search import history
from launch.study.search.directories import COMPLETE, PRUNED, TrialDirectories
from launch.study.search.settings import Search
from launch.study.searching import SearchDriver
from launch.study.workers import Workers

VALIDATIONS, STEPS_EACH = 8, 25
RATE = {"float": [1e-5, 1e-1], "log": True}
SPACE: dict[str, Any] = {
    "optim.text_lr": RATE,
    "optim.image_lr": RATE,
    "optim.head_lr": RATE,
    "model.fusion.dropout": {"float": [0, 0.8]},
}
PRUNER = {"name": "median", "n_warmup_steps": 1}
Arm = list[tuple[int, float]]  # steps of all trials so far, score of a complete trial


def curve(values: Mapping[str, Any], seed: int) -> list[float]:
    """The scores at the validations of a run: at most 0.8, at rates of 1e-3 and dropout 0.2.

    A score falls with the square of the distance in decades, and nears its end by a factor of e in
    two validations. The noise has a deviation of 0.005, as of a small validation split.
    """
    away = [math.log10(values[f"optim.{name}_lr"]) + 3 for name in ("text", "image", "head")]
    loss = 0.06 * away[0] ** 2 + 0.03 * away[1] ** 2 + 0.05 * away[2] ** 2
    loss += 0.2 * (values["model.fusion.dropout"] - 0.2) ** 2
    noise = np.random.default_rng(seed).normal(0, 0.005, VALIDATIONS)
    end = 0.3 + 0.5 * math.exp(-3 * loss)
    times = np.arange(1, VALIDATIONS + 1)
    return [float(v) for v in 0.3 + (end - 0.3) * (1 - np.exp(-times / 2)) + noise]


def simulated(search: Search) -> tuple[Arm, float]:
    """The complete trials of a search, one after the other, and the CPU time of each trial in s."""
    begin = time.process_time()
    found: Arm = []
    steps = 0
    with tempfile.TemporaryDirectory() as out:
        trials = TrialDirectories(Path(out))
        while (trial := trials.claim(search.trials)) is not None:
            own = history.history(
                search, "accuracy", trials.all(), lambda _: (), number=trial.number
            )
            values = history.propose(own, search)
            trial.write("trial.json", {"values": values})
            scores = curve(values, 1000 * search.seed + trial.number)
            hopeless, count = False, 0
            while count < VALIDATIONS and not hopeless:
                count += 1
                if search.pruner.name != "none" and count < VALIDATIONS:
                    so_far = scores[:count]

                    def of_trial(_: object, so_far: list[float] = so_far) -> list[float]:
                        return so_far

                    study = history.history(search, "accuracy", trials.all(), of_trial)
                    hopeless, notes = history.is_hopeless(study, trial.number)
                    trial.write("judged.json", {"count": count, "attributes": notes})
            steps += count * STEPS_EACH
            value = max(scores[:count])
            trial.write(
                "result.json",
                {
                    "state": PRUNED if hopeless else COMPLETE,
                    "value": value,
                    "validations": [{"value": score} for score in scores[:count]],
                },
            )
            if not hopeless:
                found.append((steps, value))
    return found, (time.process_time() - begin) / search.trials


def real(search: Search, shards: str) -> tuple[Arm, float]:
    """The same with the demo's model, in the order in which the trials were begun."""
    steps, found = 0, []
    with tempfile.TemporaryDirectory() as out:
        study = Study(
            base=str(ROOT / "launch/runs/demo.yaml"),
            settings=[f"data.shards={shards}", "run.trackers=[]"],
            metric="weighted_f1",
            search=search,
        )
        begin = time.process_time()
        assert SearchDriver(study, Path(str(study.base)), Path(out), Workers()).work() is None
        cost = (time.process_time() - begin) / search.trials
        for trial in TrialDirectories(Path(out)).all():
            steps += trial.result["step"]
            if trial.result["state"] == COMPLETE:
                found.append((steps, trial.result["value"]))
    return found, cost


def repeat(seed: int, trials: int, shards: str | None) -> dict[str, Any]:
    """Both arms from one seed."""
    arms = {}
    for name, how in (
        ("random", {"sampler": "random"}),
        ("tpe", {"sampler": {"name": "tpe", "multivariate": True}, "pruner": PRUNER}),
    ):
        search = Search.model_validate({"trials": trials, "space": SPACE, "seed": seed, **how})
        arms[name] = simulated(search) if shards is None else real(search, shards)
    random, tpe = arms["random"][0], arms["tpe"][0]
    best = max(value for _, value in random)
    reached = [steps for steps, value in tpe if value >= best]
    return {
        "random_best": best,
        "random_steps": random[-1][0],
        "tpe_best": max(value for _, value in tpe),
        "tpe_steps_to_random_best": reached[0] if reached else None,
        "share": reached[0] / random[-1][0] if reached else math.inf,
        "cpu_s_per_trial": {name: cost for name, (_, cost) in arms.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real", metavar="SHARDS")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for seed in range(arguments.repeats):
        rows.append(repeat(seed, arguments.trials, arguments.real))
        print(rows[-1], flush=True)
    shares = [row["share"] for row in rows]
    median = statistics.median(shares)
    costs = [row["cpu_s_per_trial"]["tpe"] for row in rows]
    print(f"steps to random search's best, as a share of its steps: median {median:.2f}")
    print(f"CPU time of the driver: {statistics.median(costs):.3f} s a trial")
    write_json(arguments.json, {"rows": rows, "median_share": median})


if __name__ == "__main__":
    main()
