"""No run begins whose export cannot be read, or would be another model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import Config
from mmsa.data.text import word_tokenizer
from mmsa.errors import UserError
from mmsa.models.encoder_families import ENCODERS, ImageFamily, Network, register_encoder
from mmsa.models.model import build_model
from mmsa.preprocessing import Preprocessing
from mmsa.training.prepared_run import ModelParts
from mmsa.training.read_back import check_read_back
from tests.models.tiny import image_settings, text_settings

WORDS = ["best day ever so good", "not so good"]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Takes out of the registry what a test has registered."""
    before = dict(ENCODERS["image"])
    yield
    ENCODERS["image"].clear()
    ENCODERS["image"].update(before)


def prepared(**model: Any) -> tuple[Config, ModelParts]:
    sections = {"text_encoder": text_settings(), "image_encoder": image_settings(), **model}
    config = Config.model_validate({"model": sections, "data": {"max_tokens": 12}})
    torch.manual_seed(0)
    made = build_model(config.model, 3)
    preprocessing = Preprocessing(image=made.image_encoder.preprocessing, max_tokens=12)
    return config, ModelParts(made, word_tokenizer(WORDS, 20, 12), preprocessing)


def test_a_model_that_is_read_back_is_left_as_it_was() -> None:
    config, parts = prepared(text_encoder=text_settings(train="last_n", last_n=1, projection=4))
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    modes = [module.training for module in parts.model.modules()]
    trained = [weight.requires_grad for weight in parts.model.parameters()]
    drawn = torch.random.get_rng_state()
    check_read_back(config, parts, 3)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    after = parts.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [module.training for module in parts.model.modules()] == modes
    assert [weight.requires_grad for weight in parts.model.parameters()] == trained
    assert all(weight.grad is None for weight in parts.model.parameters())


def test_settings_that_the_description_lacks_are_found() -> None:
    config, parts = prepared()
    assert parts.model.text_encoder.architecture is not None
    del parts.model.text_encoder.architecture["num_hidden_layers"]
    words = r"exports could not be read back: .*missing text_encoder.body.encoder.layer.3.*"
    with pytest.raises(UserError, match=rf"{words}Nothing was trained. Choose another encoder"):
        check_read_back(config, parts, 3)
    parts.model.text_encoder.architecture["num_hidden_layers"] = 3
    parts.model.text_encoder.architecture["hidden_act"] = "relu"
    with pytest.raises(UserError, match=r"same weights, gives outputs that differ by up to"):
        check_read_back(config, parts, 3)


class Scaled(nn.Module):
    """The mean colour, times a number that no tensor of the state dict holds."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(3, 6)

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.layer(images.mean(dim=(2, 3))) * self.factor
        return rows


def test_a_network_that_is_another_one_each_time_is_refused() -> None:
    numbers = count(1)

    @register_encoder("image", "scaled:")
    class ScaledEncoders(ImageFamily):
        def network(self, name: str, settings: Any, image_size_px: int) -> Network:
            return Network(Scaled(next(numbers)), 6)

    config, parts = prepared(image_encoder={"name": "scaled:a", "weights": "none"})
    with pytest.raises(UserError, match=r"gives outputs that differ .*encoder .* scaled:a, or"):
        check_read_back(config, parts, 3)


def test_networks_that_compute_with_their_initial_values_are_read_back() -> None:
    """A number that is taken from an initial weight: the first, fast way has no such weights."""

    class Remembering(Scaled):
        def __init__(self) -> None:
            super().__init__(1)
            nn.init.constant_(self.layer.weight, 2.0)
            self.factor = int(self.layer.weight[0, 0].nan_to_num(0, 0, 0).clamp(-9, 9))

    @register_encoder("image", "remembering:")
    class RememberingEncoders(ImageFamily):
        def network(self, name: str, settings: Any, image_size_px: int) -> Network:
            return Network(Remembering(), 6)

    config, parts = prepared(image_encoder={"name": "remembering:a", "weights": "none"})
    check_read_back(config, parts, 3)


def test_a_tokenizer_that_is_saved_otherwise_is_refused() -> None:
    config, parts = prepared()
    assert parts.tokenizer is not None
    parts.tokenizer.hugging_face.add_tokens([":)"])  # after it was taken for this run
    with pytest.raises(UserError, match=r"the tokenizer turns 'Best day ever.* after it was saved"):
        check_read_back(config, parts, 3)
