"""On labels that are independent of the input, no model may be better than chance.

Any model that predicts random labels has seen them some other way: through a leak between splits,
or a label in the input. Chance is 1/3, because the three classes are equally frequent.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import TINY, pack_synthetic
from scipy.stats import binomtest

from evaluate import main as evaluate_main
from train import main as train_main


@pytest.fixture(scope="module")
def plain_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    return pack_synthetic(directory, "--plain", samples=1100, ratios="5:1:4")


WITHOUT_FUSION = [setting for setting in TINY if not setting.startswith("model.fusion")]


def interval_of_accuracy(run_dir: Path, split: str, *settings: str) -> tuple[float, float, int]:
    """Train, evaluate the best export: the 99 % binomial interval of its accuracy, and n."""
    assert train_main([*WITHOUT_FUSION, f"run.dir={run_dir}", *settings]) == 0
    assert evaluate_main([str(run_dir), "--split", split]) == 0
    metrics = json.loads((run_dir / "reports" / f"{split}-best" / "metrics.json").read_text())
    num_samples = metrics["num_samples"]
    num_right = round(metrics["accuracy"] * num_samples)
    interval = binomtest(num_right, num_samples).proportion_ci(0.99)  # Clopper and Pearson
    return interval.low, interval.high, num_samples


@pytest.mark.parametrize("fusion", ["concat", "attention", "text_only", "image_only"])
def test_independent_labels_are_predicted_at_chance(
    plain_shards: Path, tmp_path: Path, fusion: str
) -> None:
    settings = [f"data.shards={plain_shards}", "train.epochs=4", f"model.fusion.name={fusion}"]
    low, high, num_samples = interval_of_accuracy(tmp_path, "test", *settings)
    assert num_samples >= 400
    assert low <= 1 / 3 <= high


def test_the_detector_would_find_a_leak(plain_shards: Path, tmp_path: Path) -> None:
    """The same on the training samples, which is what a leak looks like."""
    settings = [
        *[f"data.shards={plain_shards}", "train.epochs=15", "train.validate_every_steps=1000"],
        *["model.fusion.name=text_only", "model.text_encoder.pooling=mean"],
    ]
    low, _, _ = interval_of_accuracy(tmp_path, "train", *settings)
    assert low > 1 / 3
