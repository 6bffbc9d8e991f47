"""One model of each of timm's families: built, trained, divided, described and built again."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.models.build_encoders import build_image_encoder
from mmsa.models.encoder_probes import probe_image_encoder
from mmsa.models.encoders import ImageEncoder
from mmsa.models.weights import load_strictly

LARGEST = 40_000_000  # parameters: families without a smaller model are left out
_SMALL = re.compile("test_|atto|femto|pico|nano|tiny|small|_xxs|_xs|_0|_1|[^0-9](?:18|26|34|11|16)")


def _sizes(name: str) -> int:
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return sum(weight.numel() for weight in model.parameters())


def smallest_of_each_family() -> dict[str, str]:
    """Family (a module of timm) -> its smallest model, of a few whose names look small."""
    import timm

    found = {}
    for module in timm.list_modules():
        names = sorted(timm.list_models(module=module), key=lambda name: not _SMALL.search(name))
        sizes = {}
        for name in names[:4]:
            try:
                sizes[name] = _sizes(name)
            except Exception:  # it computes with values while it is built
                continue
        if sizes and min(sizes.values()) <= LARGEST:
            found[module] = min(sizes, key=lambda name: sizes[name])
        elif names and not sizes:
            found[module] = names[0]
    return found


def _built(name: str, **more: Any) -> ImageEncoder:
    torch.manual_seed(0)
    settings = {"name": f"timm:{name}", "weights": "none", **more}
    return build_image_encoder(ImageEncoderConfig.model_validate(settings))


def problem_of(name: str) -> str | None:
    """What does not work of a model; None where all does. `UserError` where it is refused."""
    encoder = _built(name)
    side = encoder.preprocessing.image_size_px
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    probe_image_encoder(encoder, name)
    torch.manual_seed(1)
    plain = encoder.train()(images)
    plain.float().square().sum().backward()
    idle = [key for key, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        return f"no gradient for {idle[:3]}"
    again = _built(name, config=encoder.architecture, train="last_n", last_n=1)
    load_strictly(again, encoder.state_dict(), where="the same")
    if not torch.equal(again.eval()(images), encoder.eval()(images)):
        return "other features from its description"
    if not any(p.requires_grad for p in again.body.parameters()):
        return "nothing in its last stage"
    saving = _built(name, gradient_checkpointing=True).train()
    torch.manual_seed(1)
    saving(images).float().square().sum().backward()
    gradients = {key: p.grad for key, p in encoder.named_parameters()}
    for key, parameter in saving.named_parameters():
        one, other = parameter.grad, gradients[key]
        if one is not None and not (other is not None and torch.equal(one, other)):
            return f"gradient checkpointing changes {key}"
    return None


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_family_of_timm() -> None:
    problems, refused, taken = {}, {}, 0
    for module, name in smallest_of_each_family().items():
        try:
            problem = problem_of(name)
        except UserError as error:
            refused[f"{module}: {name}"] = str(error)
            continue
        taken += 1
        if problem is not None:
            problems[f"{module}: {name}"] = problem
    assert problems == {}
    assert taken >= 80  # of timm 1.0.31, with 98 modules
    assert len(refused) <= 3, refused
