"""Tests on pairs of models over the same samples, corrections and repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmsa.evaluation.scores.bootstrap import LEVEL

SIGNIFICANT = 0.05
# With fewer, a verdict of the paired bootstrap has a caution. Of models that are equally good and
# differ on fewer than 25 samples it tells up to 10 % apart at the level of 5 %, and on 8 samples up
# to 13 % by their log loss (`python -m benchmarks.small_samples`). 25 is also the usual limit below
# which McNemar's test is exact and not approximated, because so few answers decide.
FEW_DISCORDANT = 25  # samples that only one of two models predicts correctly
FEW_GROUPS = 50  # duplicate groups, which are what is resampled
_OF_ANSWERS = ("accuracy", "precision", "recall", "f1", "mcc")


def verdict_caution(
    score: str, num_groups: int, discordant: float, mcnemar_p: float | None
) -> str | None:
    """Why a significant difference of two models needs caution, as text; None if it does not.

    `score` is a flat name. `discordant` is the number of samples that only one of the two predicts
    correctly, the mean over pairs of runs if there are several; `mcnemar_p` is None then. These two
    matter for scores of answers, not for those of probabilities.
    """
    reasons = []
    if num_groups < FEW_GROUPS:
        reasons.append(f"{num_groups} independent samples are fewer than {FEW_GROUPS}")
    if any(name in score.partition("/")[0] for name in _OF_ANSWERS):
        if discordant < FEW_DISCORDANT:
            reasons.append(
                f"only one of the two is right on {discordant:g} sample(s), fewer than "
                f"{FEW_DISCORDANT}"
            )
        if mcnemar_p is not None and mcnemar_p >= SIGNIFICANT:
            reasons.append(f"McNemar's exact test does not confirm it (p = {mcnemar_p:.4f})")
    return "; ".join(reasons) or None


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Exact McNemar test of two models from their correct answers (N,) on the same samples.

    Returns how many samples only the first has right, how many only the second, and the two-sided
    p-value of "equally many": a binomial test of the samples on which they differ (McNemar 1947).
    """
    from scipy.stats import binomtest

    first_only, second_only = int((first & ~second).sum()), int((second & ~first).sum())
    if first_only + second_only == 0:
        return 0, 0, 1.0
    test = binomtest(first_only, first_only + second_only, 0.5)
    return first_only, second_only, float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for multiple tests (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def spread(values: Sequence[float], level: float = LEVEL) -> dict[str, float | None]:
    """Mean, deviation (of the sample, n - 1) and Student's interval of the mean over repetitions.

    A single repetition has only a mean.
    """
    from scipy.stats import t

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean, "deviation": None, "low": None, "high": None}
    deviation = float(np.std(np.asarray(values, dtype=np.float64), ddof=1))
    half = float(t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return {"mean": mean, "deviation": deviation, "low": mean - half, "high": mean + half}
