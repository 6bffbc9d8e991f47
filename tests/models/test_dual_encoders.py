"""CLIP, SigLIP and their like: one checkpoint gives both encoders, as its own model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmsa.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from mmsa.data.text import TextTokenizer, load_tokenizer
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.encoder_probes import probe_encoders
from mmsa.models.model import build_model, self_contained
from mmsa.models.weights import load_strictly
from mmsa.training.model_parts import tokenizer_name

TEXTS = ["so good", "not good at all so", "bad"]
WORDS = ["so", "good", "not", "at", "all", "bad"]

_TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_TEXT |= {"num_attention_heads": 2, "vocab_size": 40, "max_position_embeddings": 16}
_IMAGE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
_IMAGE |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_CLIP_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SIZES: dict[str, dict[str, Any]] = {
    "clip": {"text_config": _TEXT | _CLIP_IDS, "vision_config": _IMAGE, "projection_dim": 12},
    "siglip": {"text_config": _TEXT | {"projection_size": 20}, "vision_config": _IMAGE},
    # Of patches in any shape: 16 of them, a square of 4 x 4.
    "siglip2": {
        "text_config": _TEXT,
        "vision_config": {k: v for k, v in _IMAGE.items() if k != "image_size"}
        | {"num_patches": 16},
    },
    "chinese_clip": {"text_config": _TEXT, "vision_config": _IMAGE, "projection_dim": 12},
    "altclip": {
        "text_config": _TEXT | {"project_dim": 20, "pad_token_id": 1},
        "vision_config": _IMAGE,
        "projection_dim": 12,
    },
}


def _tokenizer(kind: str) -> Any:
    if kind == "clip":
        from transformers import CLIPTokenizer

        letters = sorted({letter for word in WORDS for letter in word})
        vocab = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{one}</w>" for one in letters)]
        return CLIPTokenizer(vocab={token: at for at, token in enumerate(vocab)}, merges=[])
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    # As SigLIP 2 has it: padding 0, which its configuration does not say, and an end token.
    vocab = {token: at for at, token in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    # To the right, as the checkpoints of SigLIP 2 say; its class says left.
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="right", **special)


def _processor(kind: str) -> Any:
    from transformers import CLIPImageProcessor, Siglip2ImageProcessor, SiglipImageProcessor

    if kind == "siglip2":
        return Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    if kind == "siglip":
        return SiglipImageProcessor(size={"height": 32, "width": 32})
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _dual(kind: str) -> Any:
    """The model of `kind` with random weights."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(2)
    return AutoModel.from_config(AutoConfig.for_model(kind, **SIZES[kind])).eval()


def _saved(kind: str, folder: Path) -> tuple[Any, str]:
    """A checkpoint as the hub has it: weights, tokenizer, image processor."""
    model = _dual(kind)
    model.save_pretrained(folder)
    _tokenizer(kind).save_pretrained(folder)
    _processor(kind).save_pretrained(folder)
    return model, str(folder)


def _text(**settings: Any) -> TextEncoderConfig:
    return TextEncoderConfig.model_validate(settings)


def _image(**settings: Any) -> ImageEncoderConfig:
    return ImageEncoderConfig.model_validate(settings)


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)


def _pooled(output: Any) -> Tensor:
    """What `get_text_features` gives: an output with pooled features, or (transformers 4) these."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def test_clip_as_its_own_model_computes(tmp_path: Path) -> None:
    model, name = _saved("clip", tmp_path)
    text = build_text_encoder(_text(name=name, projection="own")).eval()
    image = build_image_encoder(_image(name=f"hf:{name}", projection="own")).eval()
    for one in (model, text, image):
        one.requires_grad_(False)
    assert text.pooling == "last"  # the end token of a text, as CLIP pools
    assert (text.width, image.width) == (12, 12)
    ids, mask = load_tokenizer(tokenizer_name(_text(name=name)), 16)(TEXTS)
    expected = _pooled(model.get_text_features(input_ids=ids, attention_mask=mask))
    torch.testing.assert_close(text(ids, mask), expected, rtol=1e-4, atol=1e-5)
    of_images = _pooled(model.get_image_features(pixel_values=image.normalise(_images())))
    torch.testing.assert_close(image(_images()), of_images, rtol=1e-4, atol=1e-5)
    # Without its projection: the pooled features before it.
    plain = build_text_encoder(_text(name=name)).eval().requires_grad_(False)
    assert plain.width == 16
    before = model.text_model(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(plain(ids, mask), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglip_reads_the_padding_of_its_training(kind: str, tmp_path: Path) -> None:
    model, name = _saved(kind, tmp_path)
    text = build_text_encoder(_text(name=name)).eval()
    image = build_image_encoder(_image(name=f"hf:{name}")).eval()
    for one in (model, text, image):
        one.requires_grad_(False)
    assert text.pooling == "own"
    tokenizer = load_tokenizer(name, 16)
    # Its own processor pads every text to 16 tokens, and gives no mask.
    padded = tokenizer.hugging_face(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    expected = _pooled(model.get_text_features(input_ids=padded["input_ids"]))
    assert expected.shape[1] == text.width
    torch.testing.assert_close(text(*tokenizer(TEXTS)), expected, rtol=1e-4, atol=1e-5)
    assert image.preprocessing.squeezes
    assert image.preprocessing.image_size_px == 32
    inputs: dict[str, Any] = {"pixel_values": image.normalise(_images())}
    if kind == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        pixels = torch.stack([convert_image_to_patches(one, 8) for one in inputs["pixel_values"]])
        inputs = {"pixel_values": pixels, "pixel_attention_mask": torch.ones(3, 16)}
        inputs["spatial_shapes"] = torch.tensor([[4, 4]] * 3)
    of_images = _pooled(model.get_image_features(**inputs))
    torch.testing.assert_close(image(_images()), of_images, rtol=1e-4, atol=1e-5)
    if kind == "siglip":
        with pytest.raises(UserError, match="projection=own, but .* has no projection of its own"):
            build_text_encoder(_text(name=name, projection="own"))


@pytest.mark.parametrize("kind", list(SIZES))
def test_both_encoders_train_and_an_export_says_what_builds_them_again(kind: str) -> None:
    # SigLIP has no projections.
    projection = None if kind.startswith("siglip") else "own"
    section = {"weights": "none", "config": {"model_type": kind, **SIZES[kind]}}
    config = ModelConfig.model_validate(
        {
            "text_encoder": {"name": "tiny", "projection": projection, **section},
            "image_encoder": {
                "name": "hf:tiny",
                "image_size_px": 32,
                "projection": projection,
                "train": "last_n",
                "last_n": 1,
                **section,
            },
            "fusion": {"hidden": [4]},
        }
    )
    torch.manual_seed(0)
    model = build_model(config, 3, vocab_size=40)
    probe_encoders(model, config, 12)
    ids = torch.tensor([[0, 5, 6, 7, 1], [0, 8, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": mask, "images": _images()[:2]}
    model.train()(**inputs).square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    described = self_contained(config, model.eval())
    assert isinstance(described.text_encoder.projection, int | None)
    image = model.image_encoder
    assert image is not None
    again = build_model(described, 3, preprocessing=image.preprocessing).eval()
    load_strictly(again, model.state_dict(), where="the same")
    assert torch.equal(again(**inputs), model(**inputs))


def test_a_text_longer_than_the_checkpoint_reads_is_refused(tmp_path: Path) -> None:
    _, name = _saved("siglip", tmp_path)
    config = ModelConfig.model_validate(
        {"text_encoder": {"name": name}, "fusion": {"name": "text_only"}}
    )
    with pytest.raises(UserError, match="reads 16 tokens at most; use data.max_tokens=16 or fewer"):
        probe_encoders(build_model(config, 3), config, 20)


def test_incomplete_weights_of_one_part_are_found(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, name = _saved("clip", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["text_model.final_layer_norm.weight"]
    del state["vision_model.post_layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensors of the encoder .text_model.final_layer"):
        build_text_encoder(_text(name=name))
    with pytest.raises(UserError, match="lack 1 tensors of the encoder .vision_model.post_layer"):
        build_image_encoder(_image(name=f"hf:{name}"))


def test_only_dual_encoders_have_parts_of_their_own() -> None:
    sizes = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 50}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 16}
    bert = {"name": "tiny", "weights": "none", "config": sizes}
    with pytest.raises(UserError, match="projection=own, but tiny has no projection of its own"):
        build_text_encoder(_text(**bert, projection="own"))
    with pytest.raises(UserError, match="pooling=own is for text encoders that pool by themselves"):
        build_text_encoder(_text(**bert, pooling="own"))
    with pytest.raises(UserError, match="projection=own, but resnet18 has no projection"):
        build_image_encoder(_image(name="resnet18", weights="none", projection="own"))


def test_the_tokenizer_of_the_checkpoint_is_taken(tmp_path: Path) -> None:
    _, name = _saved("clip", tmp_path)
    assert tokenizer_name(_text(name=name)) == name
    tokenizer = load_tokenizer(name, 6)
    assert isinstance(tokenizer, TextTokenizer)
    ids, _ = tokenizer(["not good at all so"])
    assert ids[0, 0] == 0
    assert ids[0, -1] == 1  # the end token also of a text that was cut
