"""Sets packed with other than the default options: training and prediction know them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from harness import TINY

import mmsa
from evaluate import main as evaluate_main
from mmsa.config import load_config
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.stream import EvaluationRequests, Loader
from mmsa.labels import class_map
from mmsa.preprocessing import Preprocessing
from mmsa.process.runtime import world_from_environment
from mmsa.training.setup import prepare_run
from shards.__main__ import main as shards_main
from train import main as train_main

VOTES = {
    "positive,positive\tpositive,positive\tnegative,negative": [1 / 3, 0.0, 2 / 3],
    "negative,negative\tnegative,neutral\tneutral,neutral": [2 / 3, 1 / 3, 0.0],
    "neutral,neutral\tneutral,neutral\tneutral,neutral": [0.0, 1.0, 0.0],
}  # the annotators' lines -> shares of negative, neutral, positive


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up pairs with the labels of three annotators, and a URL and a mention in each text."""
    raw = tmp_path_factory.mktemp("votes") / "raw"
    assert shards_main(["synthetic", str(raw), "--samples", "120", "--quiet"]) == 0
    lines = ["ID\ttext,image\ttext,image\ttext,image"]
    lines += [f"{number}\t{list(VOTES)[number % 3]}" for number in range(1, 121)]
    (raw / "labelResultAll.txt").write_text("".join(f"{line}\r\n" for line in lines))
    for path in (raw / "data").glob("*.txt"):
        path.write_bytes(b"@somebody says http://t.co/x1 " + path.read_bytes())
    return raw


def packed(raw: Path, *options: str) -> Path:
    out = raw.parent / "-".join(["out", *(option.strip("-") for option in options)])
    arguments = ["pack", "mvsa-multiple", str(raw), str(out), "--protocol", "random"]
    assert shards_main([*arguments, "--ratios", "6:2:2", "--quiet", *options]) == 0
    return out


def test_soft_labels_are_targets_of_training(raw: Path, tmp_path: Path) -> None:
    shards = packed(raw, "--labels", "soft")
    manifest = load_manifest(shards)
    classes = class_map(manifest.classes, None)
    reader = SplitReader(shards, manifest, "val", classes)
    loader = Loader(
        EvaluationRequests(reader, 8, 1, 0), Preprocessing(), None, 0, soft_classes=classes
    )
    ids = {tuple(np.round(shares, 6)): line for line, shares in VOTES.items()}
    for batch in loader:
        assert batch["targets"].shape == (8, 3)
        for key, target in zip(batch["keys"], batch["targets"].numpy(), strict=True):
            line = list(VOTES)[int(key.removeprefix("mvsa-multiple-")) % 3]
            assert ids[tuple(np.round(target.astype(float), 6))] == line
    settings = [*TINY, f"data.shards={shards}", f"run.dir={tmp_path}", "train.max_steps=2"]
    run = prepare_run(load_config(None, settings), world_from_environment(), None)
    assert next(run.loaders.train)["targets"].shape == (4, 3)
    assert next(run.loaders.validation)["targets"] is None
    assert train_main(settings) == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--normalize", "urls,mentions"),
        ("--image-short-side", "original"),
        ("--image-short-side", "square:48", "--image-quality", "80"),
    ],
)
def test_prediction_on_raw_input_equals_evaluation(
    raw: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    shards = packed(raw, *options)
    run_dir = tmp_path / "run"
    settings = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=4"]
    assert train_main(settings) == 0
    assert evaluate_main([str(run_dir), "--split", "val"]) == 0
    lines = (run_dir / "reports" / "val-best" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    ids = [row["key"].removeprefix("mvsa-multiple-") for row in rows]
    texts = [(raw / "data" / f"{i}.txt").read_bytes().decode("gb18030") for i in ids]
    pictures = [raw / "data" / f"{i}.jpg" for i in ids]
    result = mmsa.load(run_dir, device="cpu").predict(texts, pictures)
    expected = [[row["probabilities"][name] for name in result.label_names] for row in rows]
    np.testing.assert_allclose(result.probabilities, expected, atol=2e-6)
