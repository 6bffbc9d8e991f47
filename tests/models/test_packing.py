"""Encoders of packed texts: the features and gradients of padded ones, or they are not packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, BertModel

from mmsa.config import TextEncoderConfig
from mmsa.data.packed_texts import PackedTexts
from mmsa.models.build_encoders import build_text_encoder
from mmsa.models.text_encoders import TextEncoder
from tests.models.tiny import TEXT_SIZES, text_settings

LENGTHS = [3, 9, 2, 2, 5, 2, 3, 2]
IDS = {"bos_token_id": 1, "eos_token_id": 2}
MORE_IDS = {"cls_token_id": 1, "sep_token_id": 2, **IDS}
# Of architectures with other names for them.
NO_SIZES = dict.fromkeys(TEXT_SIZES.keys() - {"model_type", "vocab_size"})

PACKED: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "electra": {},
    "albert": {"embedding_size": 8, "num_hidden_groups": 1},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, **NO_SIZES},
    "nomic_bert": {},
    # Causal ones.
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 40, **IDS, **NO_SIZES},
    "llama": {"pad_token_id": 0},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 4, "pad_token_id": 0},
}
PADDED: dict[str, dict[str, Any]] = {
    "mpnet": {"pad_token_id": 1},  # counts positions itself
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c"]},
    "modernbert": {"local_attention": 8, "pad_token_id": 0, **MORE_IDS},  # looks through a window
    "convbert": {"embedding_size": 8},  # convolves over neighbours
    "mobilebert": {"embedding_size": 8, "intra_bottleneck_size": 8},  # ids of neighbours
}


def texts(lengths: list[int], vocab_size: int = 50) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts of these lengths, padded to the longest."""
    places = torch.arange(max(lengths))[None]
    mask = (places < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask + (1 - mask), mask  # 1 is RoBERTa's padding


def encoder(**sizes: Any) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {**TEXT_SIZES, "max_position_embeddings": 40, "num_hidden_layers": 2, **sizes}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    settings = {**text_settings(config=sizes), "pooling": "mean"}
    return build_text_encoder(TextEncoderConfig.model_validate(settings)).eval()


def packed_for(made: TextEncoder, ids: Tensor, mask: Tensor, pad_to: int = 1) -> PackedTexts:
    packing = made.packing(pad_to)
    assert packing is not None
    packed = packing.packed(ids, mask)
    assert packed is not None
    return packed


@pytest.mark.parametrize("model_type", PACKED)
@pytest.mark.parametrize(("pooling", "pad_to"), [("cls", 1), ("mean", 8)])
def test_packed_texts_have_the_features_and_gradients_of_padded_ones(
    model_type: str, pooling: Any, pad_to: int
) -> None:
    made = encoder(model_type=model_type, **PACKED[model_type])
    made.pooling = pooling
    ids, mask = texts(LENGTHS)
    packed = packed_for(made, ids, mask, pad_to)
    assert packed.input_ids.numel() < 0.7 * ids.numel()
    found = []
    for form in (packed, None):
        made.zero_grad()
        features = made(ids, mask, form)
        (features * torch.arange(8)).sum().backward()
        found.append([features, *(p.grad for p in made.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 10
    largest = max(float(one.abs().max()) for one in found[0])
    for packed_one, padded_one in zip(*found, strict=True):
        torch.testing.assert_close(packed_one, padded_one, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("model_type", PADDED)
def test_an_encoder_that_computes_otherwise_is_not_packed(model_type: str) -> None:
    made = encoder(model_type=model_type, **PADDED[model_type])
    assert made.packing() is None


def test_a_text_does_not_see_its_neighbours_in_the_row() -> None:
    made = encoder()
    ids, mask = texts(LENGTHS)
    alone = made(ids[4:5, :5], mask[4:5, :5])
    features = made(ids, mask, packed_for(made, ids, mask))
    torch.testing.assert_close(features[4:5], alone, rtol=1e-4, atol=1e-5)
    others = ids.clone()
    others[:4], others[5:] = 7, 8
    others *= mask
    features = made(others, mask, packed_for(made, others, mask))
    torch.testing.assert_close(features[4:5], alone, rtol=1e-4, atol=1e-5)


class CutsPositions(BertModel):
    """Its outputs do not depend on the form, but positions that it is given get no gradient."""

    def forward(self, *inputs: Any, position_ids: Tensor | None = None, **named: Any) -> Any:
        self.embeddings.position_embeddings.weight.requires_grad_(position_ids is None)
        return super().forward(*inputs, position_ids=position_ids, **named)


class HalvesGradients(BertModel):
    """Under a mask over pairs of tokens its first layer gets half its gradient."""

    def forward(self, *inputs: Any, attention_mask: Tensor, **named: Any) -> Any:
        output = super().forward(*inputs, attention_mask=attention_mask, **named)
        if attention_mask.dim() == 4 and torch.is_grad_enabled():
            rows = output[0]
            output.last_hidden_state = rows.detach() + 0.5 * (rows - rows.detach())
        return output


@pytest.mark.parametrize("body_class", [CutsPositions, HalvesGradients])
def test_an_encoder_whose_gradient_alone_differs_is_not_packed(
    body_class: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the outputs of the two forms are the same to the bit."""
    assert encoder().packing() is not None
    sizes = {key: value for key, value in TEXT_SIZES.items() if key != "model_type"}
    foreign = body_class(BertConfig(**sizes))
    monkeypatch.setattr(AutoModel, "from_config", lambda config: foreign)
    made = encoder()
    assert made.body is foreign
    assert made.packing() is None
    made._takes_packs = True
    ids, mask = texts(LENGTHS)
    with torch.no_grad():
        features = made(ids, mask, packed_for(made, ids, mask))
        torch.testing.assert_close(features, made(ids, mask))


def test_a_frozen_encoder_is_tried_by_its_outputs() -> None:
    torch.manual_seed(0)
    settings = text_settings(train="frozen")
    made = build_text_encoder(TextEncoderConfig.model_validate(settings))
    assert not any(p.requires_grad for p in made.body.parameters())
    assert made.packing() is not None


def test_trying_an_encoder_leaves_no_trace() -> None:
    random_state = torch.random.get_rng_state()
    made = encoder().train()
    weights = [weight.clone() for weight in made.parameters()]
    drawn = torch.random.get_rng_state()
    made.look_at_masks()
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not torch.equal(drawn, random_state)
    assert all(weight.grad is None for weight in made.parameters())
    assert all(map(torch.equal, weights, made.parameters()))
    assert all(module.training for module in made.body.modules())
