"""Fusion heads against numbers worked out by hand, and the checks of their settings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import FusionConfig, load_config
from mmsa.errors import UserError
from mmsa.models.fusion import FUSIONS, build_fusion, fusion_problems

TEXT = torch.tensor([[1.0, 2.0]])
IMAGE = torch.tensor([[3.0]])


def _fill(layer: nn.Module, weight: list[list[float]], bias: list[float]) -> None:
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))


def _head(name: str, **settings: object) -> nn.Module:
    config = FusionConfig.model_validate({"name": name, **settings})
    return build_fusion(config, 2, 1, 2).eval()


def test_concat_is_text_then_image_through_relu() -> None:
    head = _head("concat", hidden=[2])
    _fill(head.classifier[0], [[1, 0, 1], [0, -1, 0]], [0.5, 0.0])
    _fill(head.classifier[-1], [[2, 5], [-1, 5]], [0.0, 1.0])
    # hidden: 1 + 3 + 0.5 = 4.5 and -2, which ReLU makes 0; logits: 9 and -4.5 + 1
    assert head(TEXT, IMAGE).tolist() == [[9.0, -3.5]]


def test_concat_without_hidden_widths_is_one_linear_layer() -> None:
    head = _head("concat", hidden=[])
    assert [type(layer).__name__ for layer in head.classifier] == ["Dropout", "Linear"]
    _fill(head.classifier[-1], [[1, 1, 1], [1, 0, -1]], [0.0, 0.0])
    assert head(TEXT, IMAGE).tolist() == [[6.0, -2.0]]


def test_batch_norm_stands_between_linear_and_relu() -> None:
    head = _head("concat", hidden=[4, 3], batch_norm=True, dropout=0.5)
    kinds = [type(layer).__name__ for layer in head.classifier]
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert kinds == [*block, *block, "Linear"]
    assert head.classifier[3].p == 0.5


def test_text_only_and_image_only_take_one_modality() -> None:
    text_head, image_head = _head("text_only", hidden=[]), _head("image_only", hidden=[])
    _fill(text_head.classifier[-1], [[1, 1], [0, 1]], [0.0, 0.0])
    _fill(image_head.classifier[-1], [[2], [-2]], [0.0, 1.0])
    assert text_head(TEXT, None).tolist() == [[3.0, 2.0]]
    assert image_head(None, IMAGE).tolist() == [[6.0, -5.0]]
    assert (text_head.uses_text, text_head.uses_image) == (True, False)
    assert (image_head.uses_text, image_head.uses_image) == (False, True)


def test_attention_gives_both_tokens_their_mean_when_scores_are_equal() -> None:
    """Queries and keys of zero score all alike, so each token becomes the mean of both values."""
    head = _head("attention", text_width=None, image_width=None, width=2, num_heads=1, hidden=[])
    _fill(head.text_projection[0], [[1, 0], [0, 1]], [0.0, 0.0])  # (1, 2)
    _fill(head.image_projection[0], [[1], [2]], [0.0, 0.0])  # (3, 6)
    attention = head.attention
    with torch.no_grad():
        attention.in_proj_weight.zero_()
        attention.in_proj_weight[4:] = torch.eye(2)  # values are the tokens themselves
        attention.in_proj_bias.zero_()
    _fill(attention.out_proj, [[1, 0], [0, 1]], [0.0, 0.0])
    _fill(head.classifier[-1], [[1, 0, 0, 0], [0, 0, 0, 1]], [0.0, 0.0])
    # mean of (1, 2) and (3, 6) is (2, 4), twice; the logits pick the first and the last of them
    torch.testing.assert_close(head(TEXT, IMAGE), torch.tensor([[2.0, 4.0]]))


def test_attention_lets_a_modality_take_from_the_other() -> None:
    torch.manual_seed(0)
    head = _head("attention", width=8, num_heads=2, text_width=3, image_width=5)
    base: Tensor = head(TEXT, IMAGE)
    assert base.shape == (1, 2)
    assert not torch.allclose(base, head(TEXT, IMAGE + 1))
    assert not torch.allclose(base, head(TEXT + 1, IMAGE))


def test_attention_widths_are_those_of_the_settings() -> None:
    head = build_fusion(
        FusionConfig.model_validate({"name": "attention", "text_width": 128, "image_width": 1280}),
        768,
        1280,
        3,
    )
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if p.dim() == 2}
    assert shapes == {
        "text_projection.0.weight": (128, 768),
        "text_projection.1.weight": (256, 128),
        "image_projection.0.weight": (1280, 1280),
        "image_projection.1.weight": (256, 1280),
        "attention.in_proj_weight": (768, 256),
        "attention.out_proj.weight": (256, 256),
        "classifier.0.weight": (128, 512),
        "classifier.3.weight": (3, 128),
    }


def test_the_fusions_are_named() -> None:
    assert list(FUSIONS)[:4] == ["concat", "attention", "text_only", "image_only"]


@pytest.mark.parametrize(
    ("fusion", "words"),
    [
        ({"name": "conact"}, "model.fusion.name='conact' is not a fusion; did you mean concat?"),
        ({"name": "zzz"}, "known: concat, attention, text_only, image_only"),
        ({"name": "concat", "hiden": [3]}, "did you mean model.fusion.hidden?"),
        ({"hidden": "wide"}, "model.fusion.hidden='wide': Input should be a valid list"),
        ({"hidden": [0]}, "model.fusion.hidden.0=0: Input should be greater than 0"),
        ({"dropout": 1.0}, "model.fusion.dropout=1.0: Input should be less than 1"),
        ({"name": "attention", "batch_norm": True}, "unknown key model.fusion.batch_norm"),
        (
            {"name": "attention", "width": 10, "num_heads": 4},
            "model.fusion: width 10 does not divide by num_heads 4",
        ),
    ],
)
def test_wrong_settings_are_named(fusion: dict[str, object], words: str) -> None:
    (problem,) = fusion_problems({"model": {"fusion": fusion}})
    assert words in problem


def test_settings_that_fit_have_no_problems() -> None:
    assert fusion_problems({}) == []
    assert fusion_problems({"model": None, "train": 3}) == []
    assert fusion_problems({"model": {"fusion": {"hidden": [8], "batch_norm": True}}}) == []


def test_batch_norm_on_micro_batches_of_one_is_refused() -> None:
    raw = {"model": {"fusion": {"batch_norm": True}}, "train": {"micro_batch_size": 1}}
    (problem,) = fusion_problems(raw)
    assert "use a micro-batch of at least 2" in problem
    raw["train"] = {"micro_batch_size": 2}
    assert fusion_problems(raw) == []


def test_problems_are_reported_with_those_of_the_configuration() -> None:
    with pytest.raises(UserError) as raised:
        load_config(
            None,
            ["model.fusion.name=concta", "optim.text_lrr=1"],
            checks=[fusion_problems],
        )
    message = str(raised.value)
    assert "2 problems" in message
    assert "did you mean concat?" in message
    assert "did you mean optim.text_lr?" in message


def test_building_with_wrong_settings_is_a_user_error() -> None:
    with pytest.raises(UserError, match="did you mean model.fusion.hidden"):
        build_fusion(FusionConfig.model_validate({"name": "concat", "hiden": [1]}), 2, 1, 3)
    with pytest.raises(UserError, match="not a fusion"):
        build_fusion(FusionConfig.model_validate({"name": "sum"}), 2, 1, 3)
