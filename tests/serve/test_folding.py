"""BatchNorms are folded where that changes nothing but rounding, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from mmsa.serve.folding import fold_batch_norms


class Branches(nn.Module):
    """Two outputs of one convolution: one through the norm, one as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        found = self.convolution(images)
        return torch.cat([self.norm(found), found])


class Shared(Branches):
    """One convolution that is used twice, and normalised once."""

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.convolution(images)) + self.convolution(images.flip(-1))


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation, as if it had been trained."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: resnet18(num_classes=5), 0),
        (lambda: timm.create_model("test_efficientnet", num_classes=5), 0),  # with activations
        (lambda: timm.create_model("tf_efficientnet_lite0", num_classes=5), 0),  # padded
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 1),  # the other order
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        (Branches, 1),
        (Shared, 1),
    ],
)
@torch.no_grad()
def test_the_function_stays_the_same(build: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    model = _with_statistics(build())
    probe, other = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    expected, before = model(other), _norms(model)
    folded = fold_batch_norms(model, lambda: model(probe))
    assert (folded, _norms(model)) == (before - left, left)
    torch.testing.assert_close(model(other), expected, rtol=1e-4, atol=1e-5)
    if not folded:
        assert torch.equal(model(other), expected)


@torch.no_grad()
def test_a_layer_that_still_learns_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    assert fold_batch_norms(model, lambda: model(torch.rand(2, 3, 8, 8))) == 0
    assert _norms(model) == 1
