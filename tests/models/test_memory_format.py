"""Channels last and masks over pairs of tokens: faster, and nothing else is seen of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig, OptimConfig, TextEncoderConfig
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.encoders import ImageEncoder, lay_out, memory_format_for
from mmsa.models.text_encoders import pair_mask
from mmsa.training.optim import build_optimizer
from tests.models.tiny import text_settings


def encoder(
    memory_format: torch.memory_format | None = None, name: str = "resnet18"
) -> ImageEncoder:
    """A fresh encoder in its own memory format, or in `memory_format`."""
    torch.manual_seed(0)
    config = ImageEncoderConfig(name=name, weights="none", image_size_px=32)
    made = build_image_encoder(config)
    if memory_format is not None:
        lay_out(made.body, memory_format)
        made.memory_format = memory_format
    return made


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", torch.channels_last),
        ("mobilenet_v2", torch.channels_last),
        ("convnext_tiny", torch.channels_last),
        ("vit_b_16", torch.contiguous_format),
    ],
)
def test_convolutional_encoders_are_channels_last(name: str, expected: torch.memory_format) -> None:
    made = encoder(name=name)
    assert made.memory_format == expected
    weights = [m.weight for m in made.modules() if isinstance(m, nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=expected) for weight in weights)


@pytest.mark.parametrize(
    ("channels", "stride", "expected"),
    [
        (4, 2, torch.contiguous_format),
        (7, 2, torch.contiguous_format),
        (8, 2, torch.contiguous_format),
        (15, 2, torch.contiguous_format),
        (16, 2, torch.channels_last),
        (4, 1, torch.channels_last),
    ],
)
def test_no_layout_is_chosen_in_which_a_kernel_of_onednn_overruns(
    channels: int, stride: int, expected: torch.memory_format
) -> None:
    """The other layout aborts here, or hangs (oneDNN#6035): on a CPU with AVX-512 below 16
    channels, on one without below 8."""
    torch.manual_seed(0)
    shortcut = nn.Conv2d(channels, 8, 1, stride=stride, bias=False)
    body = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), shortcut)
    assert memory_format_for(body) == expected
    lay_out(body, memory_format_for(body))
    images = torch.randn(2, 3, 56, 56).contiguous(memory_format=expected)
    body(images).square().sum().backward()
    assert shortcut.weight.grad is not None
    exact = copy.deepcopy(body).double()
    exact.zero_grad()
    exact(images.double()).square().sum().backward()
    torch.testing.assert_close(
        shortcut.weight.grad.double(), exact[1].weight.grad, rtol=1e-4, atol=1e-3
    )


def test_the_format_in_which_pictures_come_changes_no_bit() -> None:
    made = encoder().eval()
    there = pictures()
    expected = made(there)
    assert torch.equal(made(there.contiguous(memory_format=torch.channels_last)), expected)


def test_a_step_moves_the_weights_as_in_the_other_format() -> None:
    """float32: sums in another order, and nothing more; names, shapes and values are the same."""
    states = []
    for memory_format in (torch.channels_last, torch.contiguous_format):
        # By fixed statistics: those of four pictures would magnify the last bits.
        made = encoder(memory_format).eval()
        named = list(made.named_parameters())
        optimizer = build_optimizer({"image": named}, OptimConfig(image_lr=1e-3, eps=1e-3))
        for _ in range(2):
            made(pictures()).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        moments = {
            f"exp_avg/{name}": optimizer.state[parameter]["exp_avg"] for name, parameter in named
        }
        states.append({**made.state_dict(), **moments})
    found, expected = states
    assert list(found) == list(expected)
    assert not found["body.layer1.0.conv1.weight"].is_contiguous()
    assert expected["body.layer1.0.conv1.weight"].is_contiguous()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_weights_that_lie_otherwise_load_into_it() -> None:
    plain, made = encoder(torch.contiguous_format), encoder()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1.0)
    made.load_state_dict(plain.state_dict())
    assert not made.body.layer1[0].conv1.weight.is_contiguous()  # type: ignore[union-attr,index]
    for name, value in plain.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


def test_a_mask_over_pairs_has_the_effect_of_one_over_tokens() -> None:
    torch.manual_seed(0)
    made = build_text_encoder(TextEncoderConfig.model_validate(text_settings())).eval()
    assert made._takes_pairs  # of BERT under SDPA
    ids, mask = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
    assert pair_mask(mask).shape == (2, 1, 4, 4)
    expected = made.body(input_ids=ids, attention_mask=mask)[0]
    found = made.body(input_ids=ids, attention_mask=pair_mask(mask))[0]
    torch.testing.assert_close(found[mask > 0], expected[mask > 0])


def test_an_encoder_that_makes_masks_of_its_own_gets_none_over_pairs() -> None:
    sizes = {"model_type": "mpnet", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 20}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    config = TextEncoderConfig(name="mpnet", weights="none", config=sizes)
    assert not build_text_encoder(config)._takes_pairs
