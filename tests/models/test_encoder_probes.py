"""What is tried on an encoder before the first step, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.encoder_probes import probe_encoders, probe_image_encoder, probe_text_encoder
from mmsa.models.encoders import ImageEncoder
from mmsa.models.model import build_model
from mmsa.models.text_encoders import TextEncoder
from mmsa.preprocessing import ImagePreprocessing
from tests.models.tiny import image_settings, text_settings

PLAIN: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 40}
XLM: dict[str, Any] = {"emb_dim": 8, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40}


def text(model_type: str, sizes: dict[str, Any], pooling: str = "cls") -> TextEncoder:
    torch.manual_seed(0)
    config = {"model_type": model_type, "vocab_size": 60, **sizes}
    settings = text_settings(name=model_type, config=config, pooling=pooling)
    return build_text_encoder(TextEncoderConfig.model_validate(settings))


def image(**sizes: Any) -> ImageEncoder:
    torch.manual_seed(0)
    settings = image_settings(config={**PLAIN, "image_size": 32, "patch_size": 8, **sizes})
    return build_image_encoder(ImageEncoderConfig.model_validate(settings))


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", GPT2),
        ("clip_text_model", PLAIN),
        ("llama", GROUPED),
        ("qwen2", GROUPED),
        ("gemma", {**GROUPED, "head_dim": 4}),
    ],
)
def test_a_causal_encoder_is_refused_with_its_first_token(
    model_type: str, sizes: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"same features with .*pooling=cls.*pooling=last"):
        probe_text_encoder(text(model_type, sizes), model_type, 32)
    probe_text_encoder(text(model_type, sizes, pooling="mean"), model_type, 32)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("bert", PLAIN),
        ("roberta", {**PLAIN, "pad_token_id": 1}),
        ("deberta-v2", {**PLAIN, "relative_attention": True, "position_biased_input": False}),
        ("t5", {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}),
        ("xlnet", {"d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 16}),
        # Their code refuses packed texts, with an error that is not a ValueError.
        ("xlm", XLM),
        ("flaubert", XLM),
    ],
)
def test_encoders_that_see_the_whole_text_pass(
    model_type: str, sizes: dict[str, Any], pooling: str
) -> None:
    probe_text_encoder(text(model_type, sizes, pooling), model_type, 32)


# The tables: 40 positions; 42 without the two that RoBERTa leaves free; CLIP's own default.
@pytest.mark.parametrize(
    ("model_type", "sizes", "limit"),
    [
        ("bert", {**PLAIN, "max_position_embeddings": 40}, 40),
        ("roberta", {**PLAIN, "max_position_embeddings": 42, "pad_token_id": 1}, 40),
        ("gpt2", GPT2, 40),
        ("clip_text_model", PLAIN, 77),
        ("xlm", XLM, 40),
        # Nothing fails beyond it, but the model knows no such positions.
        ("llama", {**GROUPED, "max_position_embeddings": 50}, 50),
    ],
)
def test_the_longest_text_is_named(model_type: str, sizes: dict[str, Any], limit: int) -> None:
    encoder = text(model_type, sizes, pooling="mean")
    probe_text_encoder(encoder, model_type, limit)
    with pytest.raises(UserError, match=rf"reads {limit} tokens at most.*max_tokens={limit} or"):
        probe_text_encoder(encoder, model_type, limit + 1)


class Tokens(nn.Module):
    """A body of no library: a table of tokens, then what the test wants."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table = nn.Embedding(60, 8)
        self.then = then

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.then(self.table(input_ids))


def bare_text(then: Callable[[Tensor], Tensor]) -> TextEncoder:
    torch.manual_seed(0)
    body = Tokens(then)
    return TextEncoder(body, pooling="mean", projection=None, width=8, vocab_size=60)


def test_a_limit_that_nothing_states_is_found_by_trying() -> None:
    def up_to_21(hidden: Tensor) -> Tensor:
        if hidden.shape[1] > 21:
            raise KeyError("no such position")
        return hidden

    probe_text_encoder(bare_text(up_to_21), "mine:x", 21)
    with pytest.raises(UserError, match=r"reads 21 tokens at most \(more end in KeyError: 'no"):
        probe_text_encoder(bare_text(up_to_21), "mine:x", 128)


def broken(hidden: Tensor) -> Tensor:
    raise ZeroDivisionError("never works")


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda hidden: hidden + torch.rand(1), "other features each time"),
        (lambda hidden: hidden + random.random(), "other features each time"),
        (lambda hidden: hidden + np.random.rand(), "other features each time"),
        (lambda hidden: hidden * float("nan"), "not numbers"),
        (lambda hidden: hidden * 0 + 1, "two different texts the same features"),
        (broken, "does not read texts: ZeroDivisionError: never works"),
    ],
)
def test_text_encoders_without_features_to_rely_on(
    then: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(UserError, match=rf"model.text_encoder \(mine:x\).*{words}"):
        probe_text_encoder(bare_text(then), "mine:x", 16)


class Pixels(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.then = then

    def forward(self, images: Tensor) -> Tensor:
        return self.then(images.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda rows: rows + torch.rand(1), "other features each time"),
        (lambda rows: rows / 0, "not numbers"),
        (lambda rows: rows * 0 + 1, "two different images the same features"),
        (lambda rows: rows.flatten(), r"shape \(6,\) for two inputs"),
        (broken, "does not take its input: ZeroDivisionError"),
    ],
)
def test_image_encoders_without_features_to_rely_on(
    then: Callable[[Tensor], Tensor], words: str
) -> None:
    encoder = ImageEncoder(
        Pixels(then),
        body_width=3,
        projection=None,
        preprocessing=ImagePreprocessing(image_size_px=16, resize_px=16),
    )
    encoder.source = "pretrained"
    with pytest.raises(UserError, match=rf"model.image_encoder \(mine:x\).*{words}"):
        probe_image_encoder(encoder, "mine:x")


def test_a_masked_autoencoder_sees_the_whole_image_each_time() -> None:
    decoder = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {f"decoder_{key}": value for key, value in decoder.items()}
    encoder = image(model_type="vit_mae", decoder_intermediate_size=16, **sizes)
    probe_image_encoder(encoder, "hf:mae")
    encoder.eval()
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    before = encoder(images)
    assert torch.equal(encoder(images), before)
    for row in range(0, 32, 8):  # each of the 16 patches counts
        for column in range(0, 32, 8):
            one = images.clone()
            one[:, :, row : row + 8, column : column + 8] = 255
            assert not torch.equal(encoder(one), before)
    # A plain ViT with the same tensors gives the same: nothing is masked, nothing out of place.
    plain = image(model_type="vit").eval()
    own = encoder.body.model.state_dict()
    pairs = plain.body.model.state_dict()
    plain.body.model.load_state_dict({key: own.get(key, value) for key, value in pairs.items()})
    assert {key for key in pairs if key not in own} == {"pooler.dense.weight", "pooler.dense.bias"}
    plain.body.model.pooler = None
    pictures = torch.arange(3 * 32 * 32).remainder(251).to(torch.uint8).view(1, 3, 32, 32)
    torch.testing.assert_close(encoder(pictures), plain(pictures))


@pytest.mark.parametrize(
    "model_type",
    ["vit", "deit", "beit", "data2vec-vision", "vit_msn", "ijepa", "dinov3_vit", "dinov2"]
    + ["clip_vision_model", "siglip_vision_model", "aimv2_vision_model"],
)
def test_image_encoders_of_transformers_pass(model_type: str) -> None:
    sizes = {"model_type": model_type}
    encoder = image(**sizes) if model_type != "dinov2" else dinov2()
    probe_image_encoder(encoder, f"hf:{model_type}")


def dinov2() -> ImageEncoder:
    sizes = {key: value for key, value in PLAIN.items() if key != "intermediate_size"}
    settings = image_settings(config={"model_type": "dinov2", "mlp_ratio": 2, **sizes})
    return build_image_encoder(ImageEncoderConfig.model_validate(settings))


STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    "sizes",
    [
        {"model_type": "convnext", **STAGES},
        {"model_type": "convnextv2", **STAGES},
        {"model_type": "resnet", "embedding_size": 8, **STAGES},
        {"model_type": "regnet", "embedding_size": 8, "groups_width": 4, **STAGES},
        {"model_type": "bit", "embedding_size": 8, "num_groups": 2, **STAGES},
        {"model_type": "poolformer", **STAGES},
        {"model_type": "pvt_v2", "image_size": 32, "num_attention_heads": [1] * 4, **STAGES},
        {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
        {"model_type": "mobilenet_v1", "depth_multiplier": 0.25},
        # Fresh, its features vanish in eval mode: no reason to refuse it.
        {"model_type": "mobilevitv2", "width_multiplier": 0.25},
    ],
)
def test_convolutional_encoders_of_transformers_pass(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    settings = image_settings(config=sizes, image_size_px=64)
    encoder = build_image_encoder(ImageEncoderConfig.model_validate(settings))
    probe_image_encoder(encoder, f"hf:{sizes['model_type']}")


def test_an_encoder_for_rows_of_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \(1, 8\) for two inputs"):
        probe_image_encoder(image(model_type="pixtral"), "hf:pixtral")


def seed_all() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_probing_leaves_generators_and_modes_alone() -> None:
    sections = {"text_encoder": text_settings(), "image_encoder": image_settings()}
    config = ModelConfig.model_validate(sections)
    model = build_model(config, 3)
    model.train()
    seed_all()
    expected = random.random(), np.random.rand(), torch.rand(1)
    seed_all()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    probe_encoders(model, config, 16)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert model.text_encoder.training
    assert model.image_encoder.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_both_encoders_are_reported_at_once() -> None:
    sections = {"text_encoder": text_settings(), "image_encoder": image_settings()}
    config = ModelConfig.model_validate(sections)
    model = build_model(config, 3)
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UserError, match=r"2 problems\n.*1\. .*16 tokens at most.*\n.*2\. .*NaN"):
        probe_encoders(model, config, 17)


@pytest.mark.parametrize(("model_type", "warned"), [("fnet", True), ("bert", False)])
def test_an_encoder_that_reads_padding_is_named(
    caplog: pytest.LogCaptureFixture, model_type: str, warned: bool
) -> None:
    sizes = {key: PLAIN[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    if model_type == "bert":
        sizes = PLAIN
    probe_text_encoder(text(model_type, sizes, "mean"), model_type, 16)
    assert ("it also reads the padding" in caplog.text) is warned
