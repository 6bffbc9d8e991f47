"""Each run configuration builds exactly the architecture that it names.

Figures worked out by hand, w for a linear layer's weights and biases, in x out + out:
BERT-base: embeddings (30,522 + 512 + 2) x 768 + norm 1,536 = 23,837,184; a layer is 4 x (768 x 768
  + 768) + (768 x 3072 + 3072) + (3072 x 768 + 768) + 2 x 1,536 = 7,087,872; twelve and the
  embeddings are 108,891,648, without the pooler.
ResNet-18 11,176,512, ResNet-50 23,508,032, MobileNetV2 2,223,872: published totals less the
  classifier (tests/models/test_image_encoders.py). ResNet-50's layer4: three blocks,
  1024 x 512 + 9 x 512 x 512 + 512 x 2048 + norms 2 x (512 + 512 + 2048), then the shortcut
  1024 x 2048 + 2 x 2048, then two of 2048 x 512 + 9 x 512 x 512 + 512 x 2048 + 6,144
  = 3,938,304 + 2,101,248 + 2 x 4,462,592 = 14,964,736.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmsa.config import Config, load_config
from mmsa.models.fusion import fusion_problems
from mmsa.models.model import SentimentModel, build_model, count_parameters

RUNS = Path(__file__).parent.parent / "launch" / "runs"
BERT, BERT_LAYER = 108_891_648, 7_087_872
RESNET_18, RESNET_50, RESNET_50_LAYER_4, MOBILENET = 11_176_512, 23_508_032, 14_964_736, 2_223_872
EFFICIENTNET_LITE0 = 3_371_008  # 4,652,008 as published, less the classifier 1280 x 1000 + 1000
FRESH = [
    "model.text_encoder.weights=none",
    "model.text_encoder.config={model_type: bert}",
    "model.image_encoder.weights=none",
]

# name: number of classes, then (trained, frozen) per part
EXPECTED: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {
    "full_finetune": (
        3,
        {
            "text_encoder.body": (BERT, 0),
            "image_encoder.body": (RESNET_50, 0),
            # 2816 -> 512 -> 3
            "fusion": (2816 * 512 + 512 + 512 * 3 + 3, 0),
        },
    ),
    "notebook": (
        2,
        {
            "text_encoder.body": (0, BERT),
            "image_encoder.body": (RESNET_18, 0),
            "image_encoder.projection": (512 * 128 + 128, 0),
            # 768 + 128 = 896 -> 64 -> 1
            "fusion": (896 * 64 + 64 + 64 + 1, 0),
        },
    ),
    "attention_fusion": (
        3,
        {
            "text_encoder.body": (0, BERT),
            "image_encoder.body": (0, MOBILENET),
            # text 768 -> 128 -> 256, image 1280 -> 1280 -> 256, attention of width 256 (four
            # 256 x 256 with biases), classifier 512 -> 128 -> 3
            "fusion": (
                (768 * 128 + 128 + 128 * 256 + 256)
                + (1280 * 1280 + 1280 + 1280 * 256 + 256)
                + 4 * (256 * 256 + 256)
                + (512 * 128 + 128 + 128 * 3 + 3),
                0,
            ),
        },
    ),
    "partial_finetune": (
        3,
        {
            "text_encoder.body": (2 * BERT_LAYER, BERT - 2 * BERT_LAYER),
            "image_encoder.body": (RESNET_50_LAYER_4, RESNET_50 - RESNET_50_LAYER_4),
            "fusion": (2816 * 512 + 512 + 512 * 3 + 3, 0),
        },
    ),
    "deep_fusion": (
        3,
        {
            "text_encoder.body": (BERT, 0),
            "image_encoder.body": (RESNET_50, 0),
            # 2816 -> 1024 -> 512 -> 3, each hidden layer with a batch norm of 2 per feature
            "fusion": (
                (2816 * 1024 + 1024) + 2 * 1024 + (1024 * 512 + 512) + 2 * 512 + (512 * 3 + 3),
                0,
            ),
        },
    ),
    "best": (
        3,
        {
            "text_encoder.body": (BERT, 0),  # by FRESH, as for small_encoders
            "image_encoder.body": (EFFICIENTNET_LITE0, 0),
            "fusion": ((768 + 1280) * 256 + 256 + 256 * 3 + 3, 0),
        },
    ),
    "small_encoders": (
        3,
        {
            # FRESH makes its text encoder BERT-base, as everywhere here
            "text_encoder.body": (BERT, 0),
            "image_encoder.body": (RESNET_18, 0),
            "fusion": ((768 + 512) * 256 + 256 + 256 * 3 + 3, 0),
        },
    ),
}
IMAGE_SIZE_PX = {"small_encoders": 128}  # of those that set another than 224


def _load(name: str, overrides: list[str]) -> Config:
    return load_config(str(RUNS / f"{name}.yaml"), overrides, checks=[fusion_problems])


def _forward(model: SentimentModel, side: int) -> torch.Tensor:
    ids = torch.tensor([[101, 2204, 102], [101, 102, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.no_grad():
        return model.eval()(ids, mask, torch.zeros(2, 3, side, side, dtype=torch.uint8))


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_architecture(name: str) -> None:
    num_classes, parts = EXPECTED[name]
    config = _load(name, FRESH)
    model = build_model(config.model, num_classes)
    assert count_parameters(model) == parts
    num_outputs = 1 if config.model.loss == "binary_cross_entropy" else num_classes
    assert _forward(model, 64).shape == (2, num_outputs)
    assert model.image_encoder is not None
    assert model.image_encoder.preprocessing.image_size_px == IMAGE_SIZE_PX.get(name, 224)


def test_every_run_configuration_is_tested() -> None:
    assert {path.stem for path in RUNS.glob("*.yaml")} == {*EXPECTED, "demo"}


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.yaml")), ids=lambda path: path.stem)
def test_begins_by_saying_what_it_reproduces(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line for line in lines if line.startswith("#")]
    assert lines[0].startswith("# ")
    assert len(comment) >= 2
    assert max(map(len, lines)) <= 100


def test_full_finetune_is_pretrained_and_plain() -> None:
    config = _load("full_finetune", [])
    assert (config.model.text_encoder.weights, config.model.text_encoder.name) == (
        "pretrained",
        "bert-base-uncased",
    )
    assert (config.model.image_encoder.weights, config.model.image_encoder.name) == (
        "pretrained",
        "resnet50",
    )
    assert config.train.select_by == "weighted_f1"


def test_notebook_is_the_notebooks() -> None:
    config = _load("notebook", [])
    assert config.data.classes == {"negative": ["negative"], "positive": ["positive"]}
    assert config.data.max_tokens == 128
    assert config.model.text_encoder.pooling == "cls"
    assert config.model.image_encoder.weights == "none"
    optim = config.optim
    assert (optim.name, optim.text_lr, optim.image_lr, optim.head_lr) == ("adamw", 2e-5, 2e-5, 2e-5)
    assert (config.train.global_batch_size, config.train.epochs) == (32, 3)


def test_attention_fusion_loads_the_exports_of_stage_one() -> None:
    config = _load("attention_fusion", [])
    assert config.model.text_encoder.weights == "runs/text_only/best"
    assert config.model.image_encoder.weights == "runs/image_only/best"
    assert config.model.text_encoder.pooling == "mean"
    assert config.train.select_by == "weighted_f1"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["model.fusion.name=text_only", "model.text_encoder.pooling=mean"],
            {"text_encoder.body": (BERT, 0), "fusion": (768 * 512 + 512 + 512 * 3 + 3, 0)},
        ),
        (
            ["model.fusion.name=image_only", "model.image_encoder.name=mobilenet_v2"],
            {"image_encoder.body": (MOBILENET, 0), "fusion": (1280 * 512 + 512 + 512 * 3 + 3, 0)},
        ),
    ],
)
def test_stage_one_of_attention_fusion(
    overrides: list[str], parts: dict[str, tuple[int, int]]
) -> None:
    """The overrides that the comment of attention_fusion.yaml gives for its two first runs."""
    comment = (RUNS / "attention_fusion.yaml").read_text(encoding="utf-8")
    assert all(override in comment for override in overrides)
    model = build_model(_load("full_finetune", [*overrides, *FRESH]).model, 3)
    assert count_parameters(model) == parts


def test_deep_fusion_has_adam_a_schedule_and_twenty_epochs() -> None:
    config = _load("deep_fusion", [])
    assert (config.optim.name, config.optim.schedule, config.train.epochs) == ("adam", "cosine", 20)
    assert config.model.fusion.settings["dropout"] == 0.5
    assert config.model.loss == "cross_entropy"


def test_partial_finetune_has_dropout() -> None:
    assert _load("partial_finetune", []).model.fusion.settings["dropout"] == 0.3


def test_demo_needs_no_network_and_is_tiny() -> None:
    config = _load("demo", [])
    model = build_model(config.model, 3, vocab_size=4000)
    # embeddings (4000 + 64 + 2) x 64 + 128; a layer 4 x (64 x 64 + 64) + (64 x 128 + 128) +
    # (128 x 64 + 64) + 2 x 128 = 33,472, two of them
    assert count_parameters(model)["text_encoder.body"] == (260_224 + 128 + 2 * 33_472, 0)
    # stem 3 x 16 x 49; blocks of two 3 x 3 convolutions 16-16, 16-32, 32-64, 64-64; shortcuts
    # 16-32, 32-64 (1 x 1); norms twice their widths
    convolutions = 3 * 16 * 49 + 9 * (2 * 256 + (512 + 1024) + (2048 + 4096) + 2 * 4096)
    shortcuts = 16 * 32 + 32 * 64 + 64 * 64
    norms = 2 * (16 + 2 * 16 + 3 * 32 + 3 * 64 + 3 * 64)
    assert count_parameters(model)["image_encoder.body"] == (convolutions + shortcuts + norms, 0)
    assert count_parameters(model)["fusion"] == (128 * 64 + 64 + 64 * 3 + 3, 0)
    assert model.image_encoder is not None
    assert model.image_encoder.preprocessing.image_size_px == 64
    assert config.model.text_encoder.tokenizer == "words:4000"
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.long)
    logits = model.eval()(ids, mask, torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert logits.shape == (1, 3)
