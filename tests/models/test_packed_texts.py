"""Texts packed into rows: the same features and gradients as of padded ones, for fewer tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmsa.config import TextEncoderConfig
from mmsa.models.build_encoders import build_text_encoder
from mmsa.models.packed_texts import pack_texts
from mmsa.models.text_encoders import TextEncoder
from tests.models.tiny import TEXT_SIZES, text_settings

LENGTHS = [3, 9, 2, 2, 5, 2, 3, 2]


def texts(lengths: list[int], vocab_size: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of texts of these lengths, padded to the longest."""
    places = torch.arange(max(lengths))[None]
    mask = (places < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, vocab_size, mask.shape, generator=torch.Generator().manual_seed(0))
    return ids * mask + (1 - mask), mask  # 1 is RoBERTa's padding


def encoder(**sizes: Any) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {**TEXT_SIZES, "max_position_embeddings": 40, **sizes}
    settings = {**text_settings(config=sizes), "pooling": "mean"}
    return build_text_encoder(TextEncoderConfig.model_validate(settings)).eval()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_packed_texts_have_the_features_and_gradients_of_padded_ones(
    model_type: str, pooling: Any
) -> None:
    made = encoder(model_type=model_type, pad_token_id=1 if "roberta" in model_type else 0)
    assert made._takes_packs
    made.pooling = pooling
    ids, mask = texts(LENGTHS)
    packed = made._packed(ids, mask)
    assert packed is not None
    assert packed.input_ids.numel() < 0.5 * ids.numel()
    found = {}
    for takes in (True, False):
        made._takes_packs = takes
        made.zero_grad()
        features = made(ids, mask)
        features.square().sum().backward()
        found[takes] = [features, *(p.grad for p in made.parameters() if p.grad is not None)]
    assert len(found[True]) == len(found[False]) > 10
    for packed_one, padded_one in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(packed_one, padded_one, rtol=1e-4, atol=1e-5)


def test_a_text_does_not_see_its_neighbours_in_the_row() -> None:
    made = encoder()
    ids, mask = texts(LENGTHS)
    alone = made(ids[4:5, :5], mask[4:5, :5])
    torch.testing.assert_close(made(ids, mask)[4:5], alone, rtol=1e-4, atol=1e-5)
    others = ids.clone()
    others[:4], others[5:] = 7, 8
    torch.testing.assert_close(made(others * mask, mask)[4:5], alone, rtol=1e-4, atol=1e-5)


def test_every_token_has_one_place_and_comes_back_from_it() -> None:
    generator = torch.Generator().manual_seed(1)
    num_packed = 0
    for _ in range(50):
        num_texts = int(torch.randint(1, 70, (1,), generator=generator))
        lengths = torch.randint(1, 30, (num_texts,), generator=generator)
        lengths[0] = 40
        ids, mask = texts(lengths.tolist(), vocab_size=10**6)
        packed = pack_texts(ids, mask, first_position=0, max_positions=64)
        if packed is None:
            continue
        num_packed += 1
        assert packed.input_ids.shape[1] <= 64
        assert packed.input_ids.numel() <= 0.9 * ids.numel()
        back = packed.unpacked(packed.input_ids[..., None].double())[..., 0]
        assert torch.equal(back.long(), ids * mask)
        positions = packed.unpacked(packed.position_ids[..., None].double())[..., 0].long()
        assert torch.equal(positions, torch.arange(ids.shape[1]) * mask)
        looks_at = packed.attention_mask[:, 0].sum(dim=2)  # (P, S): tokens of its own text
        seen = packed.unpacked(looks_at[..., None].double())[..., 0].long()
        assert torch.equal(seen, mask * mask.sum(dim=1, keepdim=True))
    assert num_packed > 40


def test_what_saves_too_little_is_left_as_it_is() -> None:
    alike, mask = texts([9, 9, 8, 9])
    assert pack_texts(alike, mask, first_position=0, max_positions=None) is None
    short, mask = texts([9, 2, 2, 2])  # no row may be longer than the longest text
    assert pack_texts(short, mask, first_position=0, max_positions=9) is not None
    assert pack_texts(*texts([9, 9, 9, 2]), first_position=0, max_positions=9) is None


def test_an_encoder_with_positions_of_its_own_is_not_packed() -> None:
    sizes = {"model_type": "mpnet", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 50}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    config = TextEncoderConfig(name="mpnet", weights="none", config=sizes)
    made = build_text_encoder(config).eval()
    assert not made._takes_packs
    ids, mask = texts(LENGTHS)
    torch.testing.assert_close(made(ids, mask)[4:5], made(ids[4:5, :5], mask[4:5, :5]))


def test_an_encoder_that_looks_through_a_window_keeps_it() -> None:
    sizes = {"model_type": "modernbert", "hidden_size": 16, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    sizes |= {"local_attention": 8, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    made = build_text_encoder(TextEncoderConfig(name="m", weights="none", config=sizes))
    assert not made._takes_packs
    assert not made._takes_pairs
