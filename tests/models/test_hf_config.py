"""Settings of Hugging Face configurations: all that an export must say to rebuild a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.errors import UserError
from mmsa.foundation.settings_yaml import SettingsDumper, SettingsLoader
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.hf_config import hf_config_from_dict, hf_config_to_dict
from mmsa.models.weights import load_strictly
from tests.models.tiny import TEXT_SIZES

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
SMALL |= {"intermediate_size": 24}
POSITIONS = {**SMALL, "max_position_embeddings": 40, "pad_token_id": 0}
CAUSAL = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
V3 = {"share_att_key": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"}
V3 |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "conv_kernel_size": 3}
V3 |= {"position_biased_input": False, "type_vocab_size": 0, "conv_act": "gelu"}

# By type: what makes it small, and what differs from the type's defaults.
TEXT_TYPES: dict[str, dict[str, Any]] = {
    "albert": {**POSITIONS, "embedding_size": 8},
    "bert": POSITIONS,
    "deberta": {**POSITIONS, "talking_head": True, "relative_attention": True},
    "deberta-v2": {**POSITIONS, **V3},
    "electra": {**POSITIONS, "embedding_size": 8},
    "gemma3_text": {**CAUSAL, "layer_types": ["full_attention", "sliding_attention"]},
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "llama": {**CAUSAL, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    "modernbert": {**POSITIONS, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    | {"ffn_dim": 24, "word_embed_proj_dim": 12, "max_position_embeddings": 40},
    "qwen3": CAUSAL,
    "roberta": {**POSITIONS, "type_vocab_size": 1},
    "t5": {**T5, "feed_forward_proj": "gated-gelu"},
    "xlnet": {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
}
VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"intermediate_size": 24, "image_size": 32, "patch_size": 8}
IMAGE_TYPES: dict[str, dict[str, Any]] = {
    "beit": {**VISION, "use_relative_position_bias": True},
    "dinov2": {**{k: v for k, v in VISION.items() if k != "intermediate_size"}, "mlp_ratio": 2},
    "siglip_vision_model": VISION,
    "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "window_size": 4}
    | {"num_heads": [1, 2]},
    "vit": {**VISION, "hidden_act": "relu"},
}


def _through_a_file(content: dict[str, Any]) -> dict[str, Any]:
    text = yaml.dump(content, Dumper=SettingsDumper)
    read: dict[str, Any] = yaml.load(text, Loader=SettingsLoader)
    return read


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_a_text_encoder_is_rebuilt_from_what_its_export_says(model_type: str) -> None:
    from transformers import AutoConfig

    given_sizes = TEXT_TYPES[model_type]
    architecture = hf_config_to_dict(AutoConfig.for_model(model_type, **given_sizes))
    made = _text(architecture)
    again = _text(_through_a_file(made.architecture), pooling=made.pooling)
    load_strictly(again, made.state_dict(), where="the same")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [6, 7, 8, 9, 0, 0, 0, 0, 0, 0]])
    mask = (ids > 0).long()
    assert torch.equal(again(ids, mask), made(ids, mask))
    # Nothing that was given is lost: each setting is said, or is the type's default.
    rebuilt = hf_config_from_dict(made.architecture, section="x").to_dict()
    for key, value in given_sizes.items():
        assert rebuilt[key] == value, key


def _text(sizes: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    config = TextEncoderConfig(name="tiny", weights="none", config=sizes, **more)
    return build_text_encoder(config).eval()


@pytest.mark.parametrize("model_type", IMAGE_TYPES)
def test_an_image_encoder_is_rebuilt_from_what_its_export_says(model_type: str) -> None:
    torch.manual_seed(0)
    settings = {"name": "hf:tiny", "weights": "none", "image_size_px": 32}
    sizes = {"model_type": model_type, **IMAGE_TYPES[model_type]}
    made = build_image_encoder(ImageEncoderConfig(**settings, config=sizes)).eval()
    assert made.architecture is not None
    config = ImageEncoderConfig(**settings, config=_through_a_file(made.architecture))
    again = build_image_encoder(config, made.preprocessing).eval()
    load_strictly(again, made.state_dict(), where="the same")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(again(images), made(images))


def test_settings_without_a_default_are_kept_apart() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("deberta-v2", **TEXT_TYPES["deberta-v2"], _name_or_path="here")
    config.architectures, config.dtype = ["DebertaV2Model"], torch.float16
    content = hf_config_to_dict(config)
    extra = {key: V3[key] for key in ("share_att_key", "position_buckets", "norm_rel_ebd")}
    assert content["extra"] == {**extra, "conv_kernel_size": 3, "conv_act": "gelu"}
    assert content["pos_att_type"] == ["p2c", "c2p"]
    assert not {"_name_or_path", "architectures", "dtype", "use_cache"} & content.keys()


def test_a_setting_that_others_would_change_is_said() -> None:
    """128 is the width that the type computes for its default sizes, and not for these."""
    from transformers import AutoConfig

    nemo = AutoConfig.for_model("mistral", hidden_size=5120, num_attention_heads=32, head_dim=128)
    content = hf_config_to_dict(nemo)
    assert content["head_dim"] == 128
    assert hf_config_from_dict(content, section="x").head_dim == 128


def test_nested_settings_are_kept_without_bookkeeping() -> None:
    from transformers import AutoConfig

    clip = AutoConfig.for_model("clip", text_config={"hidden_size": 24, "dtype": "float16"})
    content = _through_a_file(hf_config_to_dict(clip))
    assert content["text_config"]["hidden_size"] == 24
    assert not {"dtype", "architectures", "id2label"} & content["text_config"].keys()
    assert hf_config_from_dict(content, section="x").text_config.hidden_size == 24


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9)
    | st.text("ab: -", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("xyz", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=25, deadline=None)
@given(unknown=st.dictionaries(st.text("qzj", min_size=3, max_size=8), VALUES, max_size=4))
def test_whatever_a_configuration_brings_comes_back(unknown: dict[str, Any]) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**TEXT_SIZES, **unknown)
    back = hf_config_from_dict(_through_a_file(hf_config_to_dict(config)), section="x")
    assert {key: getattr(back, key) for key in unknown} == unknown
    assert back.hidden_size == TEXT_SIZES["hidden_size"]


def test_extra_settings_are_a_mapping_and_typos_are_still_found() -> None:
    with pytest.raises(UserError, match=r"x.config.extra=3 is not a mapping; give settings with"):
        hf_config_from_dict({**TEXT_SIZES, "extra": 3}, section="x")
    with pytest.raises(UserError, match=r"no 'share_att_key' .*is written under extra"):
        hf_config_from_dict({"model_type": "deberta-v2", "share_att_key": True}, section="x")
