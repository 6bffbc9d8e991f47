"""Encoders that read from left to right: which token is used, padding, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmsa.config import ModelConfig, TextEncoderConfig
from mmsa.models.build_encoders import build_text_encoder
from mmsa.models.model import build_model, self_contained
from mmsa.models.text_encoders import TextEncoder
from mmsa.models.text_pooling import last_token
from tests.models.tiny import TEXT_SIZES

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"vocab_size": 50, "max_position_embeddings": 40}
HEADS = {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
# Without padding tokens, as the models in use come.
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}
    | {"bos_token_id": 49, "eos_token_id": 49},
    "qwen3": HEADS,
    "llama": HEADS,
    "gemma": HEADS,
    "mistral": {**HEADS, "sliding_window": 4},
    "opt": {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 12, "pad_token_id": 1},
}
END = 49
LENGTHS = [3, 9, 1, 6]


def encoder(model_type: str, **more: Any) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"model_type": model_type, **CAUSAL.get(model_type, {})}
    settings = {"name": model_type, "weights": "none", "config": sizes}
    return build_text_encoder(TextEncoderConfig.model_validate(settings | more))


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Padded on the right with the end token, which the texts end with as well."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(2, 48, mask.shape, generator=torch.Generator().manual_seed(1))
    ids[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = END
    return ids * mask + END * (1 - mask), mask


@pytest.mark.parametrize("model_type", CAUSAL)
def test_the_last_token_is_used_and_padding_does_not_matter(model_type: str) -> None:
    made = encoder(model_type).eval()
    assert (made.pooling, made.causal) == ("last", True)
    assert not made._takes_pairs  # it would show later tokens
    ids, mask = texts()
    features = made(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = made(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(features[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert features.shape == (4, made.width)
    assert float((features[0] - features[1]).abs().max()) > 0.01 * float(features.abs().max())
    # What is under the mask is not seen.
    torch.testing.assert_close(made(ids * mask + 7 * (1 - mask), mask), features)


@pytest.mark.parametrize("model_type", CAUSAL)
def test_all_of_it_is_trained_and_layers_can_be_chosen(model_type: str) -> None:
    ids, mask = texts()
    made = encoder(model_type, gradient_checkpointing=True).train()
    assert made.unused == ()
    made(ids, mask).sum().backward()
    assert all(weight.grad is not None for weight in made.parameters())
    assert not made.body.config.use_cache
    upper = encoder(model_type, train="last_n", last_n=1)
    trained = [name for name, weight in upper.named_parameters() if weight.requires_grad]
    assert trained
    assert not [name for name in trained if ".0." in name or "embed" in name or "wte" in name]


def test_the_width_is_that_of_the_rows() -> None:
    assert encoder("opt").width == 12  # of hidden_size 16: OPT-350m projects its output
    assert encoder("opt", projection=5).width == 5


def test_last_is_the_last_token_on_either_side_of_the_padding() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    assert last_token(hidden, torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist() == [[2, 3], [10, 11]]
    assert last_token(hidden, torch.tensor([[1, 0, 0], [1, 1, 1]])).tolist() == [[0, 1], [10, 11]]
    assert last_token(hidden, torch.tensor([[0, 0, 1], [0, 0, 0]])).tolist() == [[4, 5], [6, 7]]


def test_what_was_chosen_is_kept_and_others_stay_at_the_first_token() -> None:
    assert encoder("gpt2", pooling="mean").pooling == "mean"
    assert encoder("bert", config=TEXT_SIZES, pooling="last").pooling == "last"
    both_ways = encoder("bert", config=TEXT_SIZES)
    assert (both_ways.pooling, both_ways.causal) == ("cls", False)
    one_type = {"model_type": "gemma3_text", **HEADS, "use_bidirectional_attention": True}
    assert encoder("gemma3_text", config=one_type).pooling == "cls"  # EmbeddingGemma
    assert encoder("gemma3_text", config=one_type | {"use_bidirectional_attention": False}).causal


def test_an_export_says_which_token_it_was() -> None:
    sizes = {"model_type": "gpt2", **CAUSAL["gpt2"]}
    config = ModelConfig.model_validate(
        {
            "text_encoder": {"name": "g", "weights": "none", "config": sizes},
            "fusion": {"name": "text_only"},
        }
    )
    own = self_contained(config, build_model(config, 3))
    assert (config.text_encoder.pooling, own.text_encoder.pooling) == ("auto", "last")
