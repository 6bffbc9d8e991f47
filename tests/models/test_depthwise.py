"""Depthwise convolutions of image encoders are computed in float32 under a CPU's autocast."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from timm.layers import create_conv2d
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.depthwise import leave_out_of_cpu_autocast


def torchs(channels: int, groups: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=groups)


def timms(channels: int, groups: int) -> nn.Module:
    """The convolution of timm's `tf_` networks, which pads by a forward of its own."""
    return create_conv2d(channels, channels, 3, stride=2, padding="same", groups=groups)


KINDS = pytest.mark.parametrize("kind", [torchs, timms])


def images(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 9, 9, generator=torch.Generator().manual_seed(0))


@KINDS
def test_under_autocast_it_is_float32_in_bf16s_clothes(kind: Callable[..., nn.Module]) -> None:
    own = kind(8, groups=8)
    expected = own(images().bfloat16().float()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        in_bf16 = own(images().bfloat16())
        leave_out_of_cpu_autocast(own)
        found = own(images().bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not torch.equal(in_bf16, expected)  # else this test would show nothing


@KINDS
def test_without_autocast_nothing_changes(kind: Callable[..., nn.Module]) -> None:
    own = kind(8, groups=8)
    expected, names = own(images()), list(own.state_dict())
    leave_out_of_cpu_autocast(own)
    assert torch.equal(own(images()), expected)
    assert list(own.state_dict()) == names


@KINDS
@pytest.mark.parametrize("groups", [1, 2])
def test_other_convolutions_are_left_alone(kind: Callable[..., nn.Module], groups: int) -> None:
    own = kind(8, groups=groups)
    leave_out_of_cpu_autocast(own)
    assert "forward" not in vars(own)


@KINDS
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_computes_with_its_own_weights(
    kind: Callable[..., nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    own = kind(8, groups=8)
    leave_out_of_cpu_autocast(own)
    other = copied(own)
    with torch.no_grad():
        own.weight.zero_()  # type: ignore[operator, union-attr]
    with torch.autocast("cpu", torch.bfloat16):
        assert other(images()).abs().sum() > 0


def test_parameters_in_bf16_are_taken_as_they_are() -> None:
    """DeepSpeed with `train.communication=bf16` gathers them so for the forward pass."""
    own = torchs(8, groups=8).bfloat16()
    leave_out_of_cpu_autocast(own)
    with torch.autocast("cpu", torch.bfloat16):
        assert own(images()).dtype == torch.bfloat16


def test_gradients_are_those_of_float32() -> None:
    own = torchs(8, groups=8)
    given = images().bfloat16()
    own(given.float()).sum().backward()
    assert own.weight.grad is not None
    expected = own.weight.grad.clone()  # type: ignore[operator]
    own.zero_grad()
    leave_out_of_cpu_autocast(own)
    with torch.autocast("cpu", torch.bfloat16):
        own(given).sum().backward()
    assert torch.equal(own.weight.grad, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:tf_efficientnet_lite0"])
def test_image_encoders_have_it(name: str) -> None:
    """All of their depthwise convolutions, and their features are the same without autocast."""
    config = ImageEncoderConfig.model_validate(
        {"name": name, "weights": "none", "image_size_px": 32}
    )
    encoder = build_image_encoder(config).eval()
    taken = {name for name, module in encoder.named_modules() if "forward" in vars(module)}
    depthwise = {
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    assert len(depthwise) > 10
    assert taken == depthwise
    shown = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    expected = encoder(shown)
    for module in encoder.modules():
        vars(module).pop("forward", None)
    assert torch.equal(encoder(shown), expected)
