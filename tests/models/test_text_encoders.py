"""Text encoders: pooling, what is trained, and what stays in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmsa.config import TextEncoderConfig
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_text_encoder
from mmsa.models.fusion.sequences import masked_mean
from mmsa.models.text_encoders import TextEncoder
from tests.models.tiny import IMAGE_SIZES, TEXT_SIZES, text_settings

IDS = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def _text(**more: object) -> TextEncoder:
    torch.manual_seed(0)
    return build_text_encoder(TextEncoderConfig.model_validate(text_settings(**more)))


def test_masked_mean_leaves_padding_out() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[7.0, 8.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert masked_mean(hidden, mask).tolist() == [[2.0, 3.0], [0.0, 0.0]]
    assert masked_mean(hidden.bfloat16(), mask).dtype == torch.float32


def test_cls_pooling_is_the_first_token() -> None:
    encoder = _text(pooling="cls").eval()
    hidden = encoder.body(input_ids=IDS, attention_mask=MASK).last_hidden_state
    features = encoder(IDS, MASK)
    assert features.shape == (2, 8)
    torch.testing.assert_close(features, hidden[:, 0])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_does_not_change_the_features(pooling: str) -> None:
    encoder = _text(pooling=pooling).eval()
    alone = encoder(IDS[1:, :3], MASK[1:, :3])
    torch.testing.assert_close(encoder(IDS, MASK)[1:], alone, rtol=1e-5, atol=1e-6)


def test_text_encoder_has_no_pooler_and_uses_fused_attention() -> None:
    encoder = _text()
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
    assert encoder.body.config._attn_implementation == "sdpa"
    assert (encoder.width, encoder.vocab_size, encoder.max_positions) == (8, 50, 16)
    assert encoder.source == "fresh (seeded)"


def test_projection_sets_the_width() -> None:
    encoder = _text(projection=5)
    assert encoder.width == 5
    assert encoder(IDS, MASK).shape == (2, 5)


def test_the_tokenizers_size_makes_the_embedding() -> None:
    sizes = {key: value for key, value in TEXT_SIZES.items() if key != "vocab_size"}
    config = TextEncoderConfig.model_validate(text_settings(config=sizes))
    assert build_text_encoder(config, 77).body.get_input_embeddings().num_embeddings == 77
    with pytest.raises(UserError, match="the tokenizer has 51 ids and the text encoder 50"):
        build_text_encoder(TextEncoderConfig.model_validate(text_settings()), 51)


def test_an_encoder_decoder_gives_its_encoder() -> None:
    sizes = {"model_type": "t5", "vocab_size": 50, "d_model": 8, "d_kv": 4, "d_ff": 16}
    sizes |= {"num_layers": 2, "num_heads": 2}
    encoder = _text(config=sizes, pooling="mean")
    assert encoder(IDS, MASK).shape == (2, 8)
    assert not [name for name, _ in encoder.named_parameters() if "decoder" in name]
    again = _text(config=encoder.architecture, pooling="mean")
    assert again.state_dict().keys() == encoder.state_dict().keys()


def test_frozen_text_stays_in_eval_mode_and_repeats_itself() -> None:
    encoder = _text(train="frozen").train()
    assert not any(module.training for module in encoder.body.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    features = encoder(IDS, MASK)
    assert not features.requires_grad
    torch.testing.assert_close(features, encoder(IDS, MASK), rtol=0, atol=0)


def test_full_training_has_dropout() -> None:
    encoder = _text(train="full").train()
    assert all(p.requires_grad for p in encoder.parameters())
    assert not torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    encoder.eval()
    assert torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))


def test_a_frozen_encoders_projection_is_trained() -> None:
    encoder = _text(train="frozen", projection=5).train()
    encoder(IDS, MASK).sum().backward()
    trained = [name for name, p in encoder.named_parameters() if p.grad is not None]
    assert trained == ["projection.weight", "projection.bias"]


def test_last_n_layers_of_text_and_nothing_below() -> None:
    encoder = _text(train="last_n", last_n=2).train()
    encoder(IDS, MASK).sum().backward()
    trained = {name.split(".layer.")[-1][0] for name, p in _with_gradient(encoder)}
    assert trained == {"1", "2"}  # of the layers 0, 1, 2
    layers = encoder.body.encoder.layer
    assert [layer.training for layer in layers] == [False, True, True]
    assert not encoder.body.embeddings.dropout.training


def _with_gradient(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.grad is not None]


@pytest.mark.parametrize("last_n", [0, 4])
def test_last_n_must_lie_within_the_layers(last_n: int) -> None:
    with pytest.raises(UserError, match="has 3 layers .* give 1 to 3"):
        _text(train="last_n", last_n=last_n)


def test_building_draws_nothing_beyond_the_weights() -> None:
    """The probe for unused parameters runs in eval mode: seeds mean the same with and without."""
    torch.manual_seed(3)
    encoder = build_text_encoder(TextEncoderConfig.model_validate(text_settings()))
    after = torch.rand(1)
    torch.manual_seed(3)
    type(encoder.body)(encoder.body.config)  # the same draws: the pooler is made, then removed
    assert torch.equal(torch.rand(1), after)
    assert encoder.training


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"model_type": "bertt"}, "did you mean bert"),
        ({"hidden_size": 8}, "needs a model_type of transformers, not None"),
        ({**TEXT_SIZES, "hiden_size": 8}, "no 'hiden_size' for bert; did you mean hidden_size"),
        (IMAGE_SIZES, "type 'resnet' is not a text encoder"),
        ({**TEXT_SIZES, "num_attention_heads": 3}, "no encoder can be built from it"),
    ],
)
def test_wrong_sizes_are_named(sizes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _text(config=sizes)
