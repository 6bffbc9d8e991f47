"""Stand-ins for missing modalities: values, gradients, settings and what exports say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import image_settings, text_settings
from torch import Tensor

from mmsa.config import Config, ModelConfig, load_config
from mmsa.errors import UserError
from mmsa.models.model import (
    MODEL_CHECKS,
    SentimentModel,
    build_model,
    count_parameters,
    parameter_groups,
    self_contained,
)
from mmsa.models.stand_ins import StandIn

BOTH = ("text", "image")


def model_of(stand_ins: Any = "auto", head: str = "concat", **more: Any) -> SentimentModel:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "text_encoder": text_settings(),
            "image_encoder": image_settings(),
            "fusion": {"name": head},
            "stand_ins": stand_ins,
            **more,
        }
    )
    return build_model(config, 3).eval()


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (3, 6), generator=generator)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ids, torch.ones_like(ids), images


def test_a_masked_row_does_not_depend_on_what_was_masked() -> None:
    model = model_of(BOTH)
    text, image = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    one, other = model(*inputs(0), text, image), model(*inputs(1), text, image)
    ids, mask, images = inputs(0)
    mixed = model(inputs(1)[0], mask, images, text, image)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(mixed[1], one[1])  # its image counts, its text does not
    assert not torch.equal(mixed[2], one[2])
    assert torch.equal(model(ids, mask, inputs(1)[2], text, image)[2], one[2])


def test_a_present_row_is_that_of_a_model_without_stand_ins() -> None:
    plain, prepared = model_of(), model_of(BOTH)
    assert torch.equal(plain(*inputs()), prepared(*inputs()))  # it draws no random number
    assert "stand_ins.text.vector" in prepared.state_dict()
    assert set(prepared.state_dict()) - set(plain.state_dict()) == {
        "stand_ins.text.vector",
        "stand_ins.image.vector",
    }
    present = torch.tensor([True, True, True])
    assert torch.equal(prepared(*inputs(), present, present), plain(*inputs()))


def test_every_weight_has_a_gradient_whatever_is_missing() -> None:
    """DDP waits for all of them."""
    model = model_of(BOTH)
    nothing, everything = torch.zeros(3, dtype=torch.bool), None
    for text, image in ((nothing, everything), (everything, nothing), (everything, everything)):
        model.zero_grad(set_to_none=True)
        model(*inputs(), text, image).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        of_text = gradients["stand_ins.text.vector"]
        assert bool(of_text.any()) == (text is not None)
        body = [g for name, g in gradients.items() if name.startswith("text_encoder.")]
        assert any(bool(g.any()) for g in body) == (text is None)


def test_a_stand_in_follows_the_features_precision() -> None:
    stand_in = StandIn(4)
    features = torch.ones(2, 4, dtype=torch.bfloat16)
    found = stand_in(features, torch.tensor([True, False]))
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [[1] * 4, [0] * 4]


def test_it_is_learned_with_the_head_and_described_by_the_export() -> None:
    model = model_of(("image",))
    assert count_parameters(model)["stand_ins"] == (8, 0)
    assert "stand_ins.image.vector" in [name for name, _ in parameter_groups(model)["head"]]
    assert self_contained(ModelConfig(), model).stand_ins == ("image",)
    assert "stand_ins" not in count_parameters(model_of())


def test_defaults_leave_no_trace_in_the_configuration() -> None:
    """Files and digests of runs without them are those of earlier versions."""
    assert "stand_ins" not in Config().to_yaml()
    assert "modality_dropout" not in Config().to_yaml()
    chosen = load_config(None, ["data.modality_dropout.text=0.25", "model.stand_ins=[image, text]"])
    assert "modality_dropout:\n    text: 0.25\n    image: 0.0" in chosen.to_yaml()
    assert chosen.model.stand_ins == ("image", "text")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.modality_dropout={text: 0.5, image: 0.5}"], "together must be below 1"),
        (["data.modality_dropout.text=1.0"], "data.modality_dropout.text=1.0"),
        (["model.stand_ins=[video]"], "model.stand_ins"),
        (
            ["data.modality_dropout.text=0.1", "model.fusion.name=text_only"],
            "which reads the text alone: nothing would be left of a sample",
        ),
        (
            ["data.modality_dropout.image=0.1", "model.stand_ins=[text]"],
            "needs a stand-in for a missing image, and model.stand_ins names none",
        ),
        (
            ["model.stand_ins=[text, image]", "model.fusion.name=text_only"],
            "model.stand_ins names the image, which model.fusion.name=text_only does not read",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(None, overrides, checks=MODEL_CHECKS)
    assert said in str(error.value)


@pytest.mark.parametrize("head", ["cross_attention", "bottleneck"])
def test_a_head_that_takes_sequences_gets_one_row_for_a_missing_modality(head: str) -> None:
    model = model_of(BOTH, **{"fusion": {"name": head, "width": 8}})
    text, image = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    ids, mask, images = inputs(0)
    other_ids, _, other_images = inputs(1)
    one = model(ids, mask, images, text, image)
    assert torch.allclose(model(other_ids, mask, images, text, image)[1], one[1], atol=1e-6)
    assert torch.allclose(model(ids, mask, other_images, text, image)[2], one[2], atol=1e-6)
    one.sum().backward()
    for modality in BOTH:
        assert model.stand_ins[modality].vector.grad.abs().sum() > 0
