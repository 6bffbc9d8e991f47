"""How few samples are too few, for a temperature and for a verdict between two models.

    python -m benchmarks.small_samples [--trials N] [--json FILE]

Temperature: validation sets of n samples from a model whose right temperature is known. For each
n, how often the fitted temperature raises the log loss on 10,000 other samples, by how much on
average, and how often it ends at a bound of the search. (mmsa/calibration.py: MIN_SAMPLES)

Verdict: two models that are equally good. For each number of samples, and share on which their
answers are drawn separately, how often the paired bootstrap and McNemar's exact test find a
difference at 5 %: with all pairs, and only with those that have no caution.
(mmsa/evaluation/scores/paired_tests.py: FEW_DISCORDANT, FEW_GROUPS)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import machine, write_json
from mmsa.calibration import TEMPERATURES
from mmsa.evaluation.scores.bootstrap import Bootstrap, two_sided_p
from mmsa.evaluation.scores.calibration import lowest_loss
from mmsa.evaluation.scores.metrics import Predictions, losses_of, probabilities
from mmsa.evaluation.scores.paired_tests import SIGNIFICANT, mcnemar, verdict_caution
from mmsa.evaluation.scores.resampled import resampled_scores
from mmsa.evaluation.scores.sums import summands

SIZES = (3, 5, 10, 20, 30, 50, 75, 100, 200, 500)
RIGHT = (1.0, 1.5, 2.0)  # temperatures
MODELS = ((3, 1.5), (3, 3.0), (7, 2.0))  # classes, spread of the logits
NUM_OTHERS = 10_000
PAIRED_SIZES = (8, 15, 25, 50, 100, 200, 400)
OWN = (0.2, 0.9)  # share of the samples that the two models answer separately
SCORES = ("accuracy", "weighted_f1", "macro_f1", "loss")
RESAMPLES = 1_000


def drawn(number: int, classes: int, spread: float, random: np.random.Generator) -> Predictions:
    """Samples whose labels are drawn from the model's probabilities: its right temperature is 1."""
    logits = random.normal(scale=spread, size=(number, classes))
    sums = probabilities(logits).cumsum(axis=1)
    labels = (sums < random.uniform(size=(number, 1))).sum(axis=1).clip(max=classes - 1)
    return named(labels, logits, classes)


def named(labels: np.ndarray, logits: np.ndarray, classes: int) -> Predictions:
    keys = [f"{row:06d}" for row in range(len(labels))]
    return Predictions(keys, labels, logits.astype(np.float32), tuple(map(str, range(classes))))


def temperatures(trials: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    grid = np.log(np.geomspace(*TEMPERATURES, 241))
    rows = []
    for classes, spread in MODELS:
        others = drawn(NUM_OTHERS, classes, spread, random)
        # Logits times T are the same as a temperature of 1/T.
        curves = {
            right: np.array([losses_of(others, np.exp(x) / right).mean() for x in grid])
            for right in RIGHT
        }
        for right in RIGHT:
            plain = losses_of(others, 1 / right).mean()
            for size in SIZES:
                found = np.empty(trials)
                for trial in range(trials):
                    one = drawn(size, classes, spread, random)
                    found[trial] = lowest_loss(named(one.labels, one.logits * right, classes))
                harm = np.interp(np.log(found), grid, curves[right]) - plain
                low, high = TEMPERATURES
                rows.append(
                    {
                        **{"classes": classes, "spread": spread, "right": right, "samples": size},
                        "raises_the_loss": float((harm > 0).mean()),
                        "mean_change": float(harm.mean()),
                        "quantile_95": float(np.quantile(harm, 0.95)),
                        "at_a_bound": float(((found < 1.01 * low) | (found > high / 1.01)).mean()),
                    }
                )
                row = rows[-1]
                print(
                    f"{classes} classes, spread {spread}, right T {right}, n = {size:3}: raises "
                    f"the loss in {row['raises_the_loss']:6.1%}, mean change "
                    f"{row['mean_change']:+.4f}, 95 % below {row['quantile_95']:+.4f}, at a bound "
                    f"{row['at_a_bound']:.1%}",
                    flush=True,
                )
    return rows


def answers(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Logits (n, 3) of a model that is right on 70 %."""
    right = random.uniform(size=len(labels)) < 0.7
    predicted = np.where(right, labels, (labels + random.integers(1, 3, len(labels))) % 3)
    return np.eye(3)[predicted] * random.uniform(0.5, 3, (len(labels), 1))


def verdicts(trials: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    rows = []
    for size in PAIRED_SIZES:
        for share in OWN:
            found = dict.fromkeys([*SCORES, "mcnemar"], 0)
            qualified = dict.fromkeys(SCORES, 0)
            for _ in range(trials):
                labels = random.choice(3, size, p=[0.3, 0.15, 0.55])
                shared, own = answers(labels, random), random.uniform(size=size) < share
                pair = [
                    named(labels, np.where(own[:, None], answers(labels, random), shared), 3)
                    for _ in range(2)
                ]
                bootstrap = Bootstrap.of(np.arange(size), resamples=RESAMPLES)
                first, second = resampled_scores(list(map(summands, pair)), bootstrap)
                right = [one.predicted == labels for one in pair]
                first_only, second_only, p = mcnemar(*right)
                found["mcnemar"] += p < SIGNIFICANT
                for name in SCORES:
                    if two_sided_p(first[name] - second[name]) < SIGNIFICANT:
                        found[name] += 1
                        qualified[name] += not verdict_caution(
                            name, size, first_only + second_only, p
                        )
            rows.append(
                {
                    **{"samples": size, "own": share},
                    "found": {name: count / trials for name, count in found.items()},
                    "without_caution": {name: n / trials for name, n in qualified.items()},
                }
            )
            print(f"n = {size:3}, own {share}: {rows[-1]}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = {
        "verdicts": verdicts(arguments.trials),
        "temperatures": temperatures(arguments.trials),
    }
    write_json(arguments.json, {**machine(), "trials": arguments.trials, **figures})


if __name__ == "__main__":
    main()
