"""Parts of other projects: registration, names that are taken, an encoder of each modality."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import ModelConfig, load_config
from mmsa.errors import UserError
from mmsa.extensions import check_extensions, import_extensions, take_imports
from mmsa.foundation.registry import Registry
from mmsa.models.build_encoders import (
    build_image_encoder,
    build_text_encoder,
    last_n_without_effect,
)
from mmsa.models.encoder_families import (
    ENCODERS,
    EncoderSettings,
    ImageFamily,
    Network,
    TextEncoderSettings,
    TextFamily,
    register_encoder,
)
from mmsa.models.fusion import FUSIONS, FusionHead, register_fusion
from mmsa.models.losses import LOSSES, Loss, register_loss
from mmsa.models.model import MODEL_CHECKS, build_model, extension_modules, self_contained


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Takes out of the registries what a test has registered."""
    registries: list[Registry[Any]] = [FUSIONS, LOSSES, *ENCODERS.values()]
    before = [dict(registry) for registry in registries]
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


class Words(nn.Module):
    """Embeddings through two linear layers; a scale that no feature uses."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = self.table(input_ids) * attention_mask[..., None]
        for layer in self.layers:
            rows = layer(rows)
        return rows


def register_both() -> None:
    class WordSettings(TextEncoderSettings):
        width: int = 6

    @register_encoder("text", "words:")
    class WordEncoders(TextFamily):
        Settings = WordSettings

        def network(self, name: str, settings: Any) -> Network:
            body = Words(settings.vocab_size, settings.width)
            return Network(body, settings.width, stages=list(body.layers))

    class PatchSettings(EncoderSettings):
        width: int = 5

    @register_encoder("image", "patch:")
    class Patches(ImageFamily):
        Settings = PatchSettings

        def network(self, name: str, settings: Any, image_size_px: int) -> Network:
            assert name == "big"
            convolution = nn.Conv2d(3, settings.width, 16, stride=16)
            body = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return Network(body, settings.width, stages=[convolution])


SECTIONS: dict[str, Any] = {
    "text_encoder": {"name": "words:x", "weights": "none", "tokenizer": "words:9"},
    "image_encoder": {"name": "patch:big", "weights": "none", "config": {"width": 4}},
    "fusion": {"hidden": [3]},
}


def inputs() -> dict[str, Tensor]:
    ids = torch.tensor([[3, 4, 5], [6, 0, 0]])
    images = torch.arange(2 * 3 * 32 * 32).remainder(256).to(torch.uint8).view(2, 3, 32, 32)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "images": images}


def test_registered_encoders_build_train_and_describe_themselves() -> None:
    register_both()
    sections = {**SECTIONS, "text_encoder": {**SECTIONS["text_encoder"], "pooling": "mean"}}
    config = ModelConfig.model_validate(sections)
    torch.manual_seed(0)
    model = build_model(config, 3, vocab_size=9)
    assert (model.text_encoder.width, model.image_encoder.width) == (6, 4)
    assert model.text_encoder.unused == ("idle",)
    described = self_contained(config, model)
    assert described.text_encoder.config == {"vocab_size": 9, "width": 6}
    assert described.image_encoder.config == {"width": 4}
    again = build_model(described, 3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(**inputs()), model.eval()(**inputs()))
    assert extension_modules(config) == [__name__]


def test_stages_of_a_registered_encoder_are_for_last_n_and_checkpointing() -> None:
    register_both()
    settings = {**SECTIONS["text_encoder"], "gradient_checkpointing": True}
    config = ModelConfig.model_validate({"text_encoder": {**settings, "train": "last_n"}})
    with pytest.raises(UserError, match="2 layers that can be trained apart"):
        build_text_encoder(config.text_encoder, 9)
    last = config.text_encoder.model_copy(update={"last_n": 1})
    encoder = build_text_encoder(last, 9)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"body.layers.1.weight", "body.layers.1.bias"}


def test_weights_of_a_registered_encoder(tmp_path: Path) -> None:
    register_both()
    image = ModelConfig.model_validate(SECTIONS).image_encoder
    with pytest.raises(UserError, match="patch:... have no pretrained weights"):
        build_image_encoder(image.model_copy(update={"weights": "pretrained"}))
    first = build_image_encoder(image)
    torch.save(first.body.state_dict(), tmp_path / "body.pth")
    second = build_image_encoder(image.model_copy(update={"weights": str(tmp_path / "body.pth")}))
    assert torch.equal(second.body[0].weight, first.body[0].weight)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "word:x"}, "'word:x' is not a text encoder: .* 'word:'; .*--import"),
        ({"name": "words:x", "weights": "none"}, "add model.text_encoder.tokenizer=words:8000"),
        ({"name": "words:x", "tokenizer": "a", "config": {"widht": 1}}, "config.width[?]"),
    ],
)
def test_wrong_text_encoders_are_reported_before_training(
    settings: dict[str, Any], words: str
) -> None:
    register_both()
    words_of = [f"model.text_encoder.{key}={value}" for key, value in settings.items()]
    with pytest.raises(UserError, match=words):
        load_config(None, words_of, checks=MODEL_CHECKS)
    # A head that reads no text does not ask for its encoder.
    load_config(None, [*words_of, "model.fusion.name=image_only"], checks=MODEL_CHECKS)


@pytest.mark.parametrize("encoder", ["model.text_encoder", "model.image_encoder"])
def test_last_n_alone_is_told(encoder: str) -> None:
    """A run warns of it, and a search over `train` may leave it as it is."""
    for settings, count in (
        ([f"{encoder}.last_n=2"], 1),
        ([f"{encoder}.last_n=2", f"{encoder}.train=frozen"], 1),
        ([f"{encoder}.last_n=2", f"{encoder}.train=last_n"], 0),
        ([f"{encoder}.last_n=0"], 0),
    ):
        told = last_n_without_effect(load_config(None, settings, checks=MODEL_CHECKS).model)
        assert len(told) == count
        assert all(f"{encoder}.last_n=2 has no effect" in words for words in told)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(UserError, match=r"fusion head 'concat' is registered twice: by mmsa\."):
        register_fusion("concat")(type("Mine", (FusionHead,), {}))
    with pytest.raises(UserError, match="loss 'cross_entropy' is registered twice"):
        register_loss("cross_entropy")(type("Mine", (Loss,), {}))
    with pytest.raises(UserError, match="prefix 'hf:' is registered twice"):
        register_encoder("image", "hf:")(type("Mine", (ImageFamily,), {}))
    with pytest.raises(UserError, match="is not a subclass of TextFamily"):
        register_encoder("text", "mine:")(type("Mine", (ImageFamily,), {}))


def test_losses_are_named_and_may_have_settings() -> None:
    for setting, words in (
        ("model.loss=cross_entrpy", "did you mean cross_entropy?"),
        ("model.loss.gamma=1", "unknown key model.loss.gamma for the loss cross_entropy"),
        ("model.loss=3", "Input should be a valid string"),
    ):
        with pytest.raises(UserError, match=words) as raised:
            load_config(None, [setting], checks=MODEL_CHECKS)
        assert "problems" not in str(raised.value)

    @register_loss("odd")
    class Odd(Loss):
        def num_outputs(self, num_classes: int) -> int:
            return num_classes + 1

    with pytest.raises(UserError, match="wants 4 outputs for 3 classes"):
        build_model(ModelConfig(loss="odd"), 3)


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(UserError, match="--import no.such.module: importing it raised Module"):
        import_extensions(["no.such.module"])
    assert take_imports(["a.yaml", "--import", "x", "b=1", "--import=y", "--split", "val"]) == (
        ["x", "y"],
        ["a.yaml", "b=1", "--split", "val"],
    )


def test_an_export_needs_its_modules() -> None:
    check_extensions({}, "best")
    check_extensions({"extensions": ["json"]}, "best")
    with pytest.raises(UserError, match="add --import no.such to the command"):
        check_extensions({"extensions": ["json", "no.such"]}, "best")


def test_true_is_no_number_of_a_part_either() -> None:
    with pytest.raises(UserError, match="Input should be a number, not true or false"):
        load_config(None, ["model.fusion.hidden=[true]"], checks=MODEL_CHECKS)
