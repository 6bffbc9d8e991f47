"""Which ingredients go into a soup, the mean of their tensors, and statistics for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mmsa.config import ModelConfig
from mmsa.models.model import SentimentModel, build_model
from mmsa.soup.choice import by_score, greedy, uniform
from mmsa.soup.mixing import layers_with_other_statistics, mean_of, recompute_statistics
from tests.models.tiny import image_settings, text_settings


def test_greedy_adds_what_does_not_lower_the_score() -> None:
    """Recipe 1 of Wortsman et al.: the comparison is with the mean so far, not with the best."""
    values = [0.60, 0.70, 0.65, 0.50]
    of_means = {(1, 2): 0.72, (1, 2, 0): 0.71, (1, 2, 3): 0.72}
    calls: list[tuple[int, ...]] = []

    def score(chosen: Sequence[int]) -> float:
        calls.append(tuple(chosen))
        return of_means[tuple(chosen)]

    order = by_score(values, ["d", "c", "b", "a"])
    assert order == [1, 2, 0, 3]
    found = greedy(order, values, score)
    assert found.chosen == (1, 2, 3)
    assert found.value == 0.72
    assert [(trial.ingredient, trial.added) for trial in found.trials] == [
        (2, True),
        (0, False),
        (3, True),
    ]
    assert calls == list(of_means)


def test_equal_scores_have_an_order_that_does_not_depend_on_the_command_line() -> None:
    assert by_score([0.5, 0.5, 0.6], ["b", "a", "c"]) == [2, 1, 0]
    assert uniform([2, 1, 0], lambda chosen: len(chosen) / 4).chosen == (2, 1, 0)


def test_the_mean_of_weights_and_the_first_integers() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, 4.0]), "n": torch.tensor(5)},
        {"w": torch.tensor([6.0, 6.0]), "n": torch.tensor(7)},
    ]
    found = mean_of(states)
    assert found["w"].tolist() == [3.0, 4.0]
    assert found["w"].dtype == torch.float32
    assert found["n"].item() == 3
    alone = mean_of([states[1]])
    assert torch.equal(alone["w"], states[1]["w"])


@pytest.mark.parametrize(("changed", "expected"), [("0.", {"0"}), ("1.", {"1"}), ("", {"0", "1"})])
def test_frozen_statistics_are_left_as_they_are(changed: str, expected: set[str]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = {
        name: tensor + 1 if name.startswith(changed) and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    assert layers_with_other_statistics(model, [state, state]) == set()
    assert layers_with_other_statistics(model, [state, other]) == expected


HEAD = "fusion.classifier.1"  # the BatchNorm of its hidden layer


def a_model() -> SentimentModel:
    """BatchNorm in the image encoder and in the head, and a stand-in for missing images."""
    torch.manual_seed(0)
    settings = {
        "text_encoder": text_settings(),
        "image_encoder": image_settings(),
        "fusion": {"hidden": [3], "batch_norm": True},
        "stand_ins": ["image"],
    }
    model = build_model(ModelConfig.model_validate(settings), 2)
    with torch.no_grad():
        model.stand_ins["image"].vector.fill_(5.0)
    return model


def a_batch(seed: int, present: Sequence[bool]) -> dict[str, Any]:
    """Samples of which those that are not `present` have no image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (len(present), 6), generator=generator)
    images = torch.randint(
        0, 256, (len(present), 3, 32, 32), dtype=torch.uint8, generator=generator
    )
    names = ("text_present", "packed_ids", "packed_positions", "packed_texts", "packed_bounds")
    return {
        **{"input_ids": ids, "attention_mask": torch.ones_like(ids), "images": images},
        **dict.fromkeys(names),
        "image_present": torch.tensor(present),
        "num_images": sum(present),
    }


def recompute(model: SentimentModel, layers: set[str], *batches: dict[str, Any]) -> None:
    recompute_statistics(
        model, layers, iter(batches), num_batches=len(batches), device=torch.device("cpu")
    )


def test_statistics_of_the_head_are_measured_with_stand_ins() -> None:
    model = a_model()
    norm = model.get_submodule(HEAD)
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = a_batch(1, [True, True, False, False, False])
    recompute(model, {HEAD}, batch)
    # Text and the image encoder's features or the stand-in, by hand.
    model.eval()
    assert model.text_encoder is not None
    assert model.image_encoder is not None
    with torch.no_grad():
        text = model.text_encoder(batch["input_ids"], batch["attention_mask"])
        image = model.image_encoder(batch["images"])
        image[2:] = 5.0
        hidden = model.fusion.get_submodule("classifier.0")(torch.cat([text, image], dim=1))
    torch.testing.assert_close(seen[0], hidden)
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    torch.testing.assert_close(norm.running_var, hidden.var(0))


def test_a_batch_with_fewer_than_two_images_leaves_the_statistics_of_images_alone() -> None:
    both, few = a_batch(1, [True, True, False]), a_batch(2, [True, False, False])
    found = {}
    for name, batches in {"both": [both], "also few": [few, both], "few": [few]}.items():
        model = a_model()
        images = {
            name
            for name, module in model.named_modules()
            if name.startswith("image_encoder.") and isinstance(module, nn.BatchNorm2d)
        }
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        recompute(model, images | {HEAD}, *batches)
        found[name] = dict(model.named_buffers())
    assert int(found["also few"][f"{HEAD}.num_batches_tracked"]) == 2
    for name, buffer in before.items():
        if name.startswith("image_encoder."):
            assert torch.equal(found["also few"][name], found["both"][name]), name
            assert torch.equal(found["few"][name], buffer), name
            if name.endswith("running_mean"):
                assert not torch.equal(found["both"][name], buffer), name
