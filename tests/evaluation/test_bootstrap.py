"""The bootstrap draws whole groups, the same for every model, and its intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest

from mmsa.evaluation.scores.bootstrap import Bootstrap, interval, two_sided_p
from mmsa.evaluation.scores.metrics import Predictions
from mmsa.evaluation.scores.score_table import score_table

COVERED = ("accuracy", "macro_f1", "weighted_f1", "loss", "brier")


def test_whole_groups_are_drawn() -> None:
    groups = np.array([7, 3, 7, 9, 3, 3], dtype=np.uint64)
    bootstrap = Bootstrap.of(groups, resamples=200, area_resamples=50)
    assert bootstrap.num_groups == 3
    values = np.eye(6)
    sums = np.concatenate(
        [sums for sums, _ in bootstrap.sums(values)]
    )  # how often each sample is in a resample
    assert sums.shape == (200, 6)
    assert (sums[:, 0] == sums[:, 2]).all()
    assert (sums[:, 1] == sums[:, 4]).all()
    assert (sums[:, 1] == sums[:, 5]).all()
    assert (sums[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three groups are drawn
    # The resamples of the areas are the first of these.
    counts = np.concatenate(list(bootstrap.sample_counts()))
    assert (counts == sums[:50]).all()


def test_resamples_depend_on_the_seed_but_not_on_chunks() -> None:
    bootstrap = Bootstrap.of(np.arange(1000))
    one = np.concatenate(list(bootstrap.counts(20, chunk_bytes=8 * 1000)))
    other = np.concatenate(list(bootstrap.counts(20, chunk_bytes=8 * 7000)))
    assert (one == other).all()
    assert one.shape == (20, 1000)
    seeded = next(Bootstrap.of(np.arange(1000), seed=1).counts(20))
    assert not (one == seeded).all()


def test_the_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap as reference

    random = np.random.default_rng(3)
    losses = random.exponential(size=400)
    sums_of_losses = Bootstrap.of(np.arange(400)).sums(losses[:, None])
    ours = interval(np.concatenate([sums[:, 0] for sums, _ in sums_of_losses]) / 400)
    theirs = reference((losses,), np.mean, method="percentile", rng=random).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.006)  # width 0.2


def test_intervals_ignore_undefined_values() -> None:
    values = np.array([np.nan, *range(101), np.nan], dtype=float)
    assert interval(values) == pytest.approx((2.5, 97.5))
    assert interval(np.array([np.nan])) is None


def test_the_p_value_is_twice_the_smaller_tail_and_never_zero() -> None:
    assert two_sided_p(np.arange(1, 100, dtype=float)) == 0.02  # 2 x (1 + 0) / (1 + 99)
    assert two_sided_p(-np.arange(1, 100, dtype=float)) == 0.02
    assert two_sided_p(np.array([-1.0] * 4 + [2.0] * 95)) == 0.1
    assert two_sided_p(np.zeros(99)) == 1.0


def draw(num_groups: int, random: np.random.Generator) -> tuple[Predictions, np.ndarray]:
    """Samples of an unbalanced problem in groups of one to three that share label and logits."""
    labels = random.choice(3, num_groups, p=[0.3, 0.15, 0.55])
    logits = random.normal(size=(num_groups, 3)) + 1.2 * np.eye(3)[labels]
    groups = np.repeat(
        np.arange(num_groups), random.choice([1, 2, 3], num_groups, p=[0.8, 0.1, 0.1])
    )
    keys = [f"{i:08d}" for i in range(len(groups))]
    rows = logits[groups] + 0.1 * random.normal(size=(len(groups), 3))
    return Predictions(keys, labels[groups], rows, ("a", "b", "c")), groups


@pytest.mark.soak
def test_intervals_cover_the_truth_in_500_simulations() -> None:
    check_coverage(500, 0.92, 0.97, resamples=2000)


def test_intervals_cover_the_truth() -> None:
    """A short version: 100 simulations cannot tell 93 % from 95 %, but detect broken intervals."""
    check_coverage(100, 0.85, 1.0, resamples=400)


def check_coverage(simulations: int, least: float, most: float, *, resamples: int) -> None:
    random = np.random.default_rng(2024)
    population, _ = draw(400_000, random)
    truth = {
        name: score.value for name, score in score_table(population, None, areas=False).items()
    }
    hits = dict.fromkeys(COVERED, 0)
    for _ in range(simulations):
        predictions, groups = draw(500, random)
        bootstrap = Bootstrap.of(groups, resamples=resamples)
        table = score_table(predictions, bootstrap, areas=False)
        for name in COVERED:
            low, high, true = table[name].low, table[name].high, truth[name]
            assert low is not None
            assert high is not None
            assert true is not None
            hits[name] += low <= true <= high
    covered = {name: count / simulations for name, count in hits.items()}
    print(covered)
    assert all(least <= share <= most for share in covered.values()), covered
