"""Every type of transformers that is taken as an encoder comes back from what its export says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.foundation.settings_yaml import SettingsDumper, SettingsLoader
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.encoders import Encoder, ImageEncoder
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.weights import load_strictly

# What makes a model small, under the names that types have for it.
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 40}
SMALL |= {"head_dim": 8, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 2, "num_heads": 2}
SMALL |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "embed_dim": 16}
SMALL |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
SMALL |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "ffn_dim": 24}
SMALL |= {"embedding_size": 16, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "dim": 16}
SMALL |= {"hidden_dim": 24, "moe_intermediate_size": 8, "num_experts": 4, "num_local_experts": 4}
SMALL |= {"word_embed_proj_dim": 12, "projection_dim": 16, "image_size": 32, "patch_size": 8}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [6, 7, 8, 0, 0, 0, 0, 0]])
LARGEST = 30_000_000  # parameters: types that `SMALL` leaves large are left out


def _small_types() -> dict[str, dict[str, Any]]:
    """Model type -> sizes, for all types with a model that can be built small."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    found = {}
    for config_class in MODEL_MAPPING:
        model_type = config_class.model_type
        try:
            usual = AutoConfig.for_model(model_type)
            sizes = {
                key: value
                for key, value in SMALL.items()
                if key in usual.to_dict() and isinstance(getattr(usual, key), int | None)
            }
            with torch.device("meta"):
                model = AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))
        except Exception:  # it needs packages or sizes of its own
            continue
        if sum(weight.numel() for weight in model.parameters()) <= LARGEST:
            found[model_type] = {"model_type": model_type, **sizes}
    return found


def _said(encoder: Encoder) -> Any:
    return yaml.load(yaml.dump(encoder.architecture, Dumper=SettingsDumper), Loader=SettingsLoader)


def _text(sizes: Any, pooling: str = "auto") -> tuple[TextEncoder, Tensor]:
    settings = {"name": "tiny", "weights": "none", "config": sizes, "pooling": pooling}
    made = build_text_encoder(TextEncoderConfig.model_validate(settings)).eval()
    return made, made(IDS, (IDS > 0).long())


def _image(sizes: Any) -> tuple[ImageEncoder, Tensor]:
    settings = {"name": "hf:tiny", "weights": "none", "config": sizes, "image_size_px": 32}
    made = build_image_encoder(ImageEncoderConfig.model_validate(settings)).eval()
    return made, _features(made)


def _features(encoder: ImageEncoder) -> Tensor:
    torch.manual_seed(1)  # ViT-MAE masks at random, and is refused elsewhere
    features: Tensor = encoder(torch.full((2, 3, 32, 32), 90, dtype=torch.uint8))
    return features


def _text_again(made: TextEncoder) -> Tensor:
    again, _ = _text(_said(made), made.pooling)
    load_strictly(again, made.state_dict(), where="the same")
    features: Tensor = again(IDS, (IDS > 0).long())
    return features


def _image_again(made: ImageEncoder) -> Tensor:
    again, _ = _image(_said(made))
    load_strictly(again, made.state_dict(), where="the same")
    return _features(again)


@pytest.mark.soak
def test_every_type_that_is_taken_is_rebuilt() -> None:
    different, taken = [], {"text": 0, "image": 0}
    for model_type, sizes in _small_types().items():
        for modality, build, again in (
            ("text", _text, _text_again),
            ("image", _image, _image_again),
        ):
            torch.manual_seed(0)
            try:
                made, expected = build(sizes)  # type: ignore[operator]
            except Exception:  # not an encoder, or not of these sizes
                continue
            taken[modality] += 1
            found = again(made)  # type: ignore[operator]
            if not torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True):
                different.append(f"{model_type} as {modality}")
    assert different == []
    assert taken["text"] > 150  # of transformers 5.23
    assert taken["image"] > 40
