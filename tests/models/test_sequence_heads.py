"""Fusion heads that see every token and patch: numbers by hand, padding, and missing modalities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsa.config import FusionConfig
from mmsa.errors import UserError
from mmsa.models.fusion import FusionHead, build_fusion
from mmsa.models.fusion.attention import Attention
from mmsa.models.fusion.sequences import FeatureSequence

SEQUENCE_HEADS = ("cross_attention", "bottleneck")
TEXT_WIDTH, IMAGE_WIDTH = 6, 5


def _head(name: str, **more: Any) -> FusionHead:
    torch.manual_seed(1)
    config = FusionConfig.model_validate({"name": name, "width": 8, "feedforward": 12, **more})
    return build_fusion(config, TEXT_WIDTH, IMAGE_WIDTH, 3).eval()


def _sequence(num_inputs: int, num_rows: int, width: int, seed: int) -> FeatureSequence:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_inputs, num_rows, width, generator=generator)
    return FeatureSequence(rows, torch.ones(num_inputs, num_rows, dtype=torch.bool))


def _of(sequence: FeatureSequence, present: list[bool]) -> FeatureSequence:
    """The same; an input that is not present has no row."""
    return sequence._replace(mask=sequence.mask & torch.tensor(present)[:, None])


def _attention(values: float = 1.0) -> Attention:
    """Scores are all alike, values are the rows times `values`."""
    attention = Attention(2, 1)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.value.weight.copy_(values * torch.eye(2))
        attention.output.weight.copy_(torch.eye(2))
    return attention


def test_attention_is_the_mean_of_the_rows_that_exist_when_scores_are_equal() -> None:
    asked = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]]).expand(2, -1, -1)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    found = _attention(2.0)(torch.ones(2, 1, 2), asked, mask)
    assert found.tolist() == [[[4.0, 8.0]], [[0.0, 0.0]]]


def test_attention_prefers_rows_that_match() -> None:
    """Scores that are ln 3 apart give shares of 3/4 and 1/4."""
    attention = _attention()
    with torch.no_grad():
        attention.query.weight.copy_(torch.eye(2))
        attention.key.weight.copy_(torch.eye(2) * 2**0.5)  # takes the division by sqrt(2) back
    asking = torch.tensor([[[1.0986123, 0.0]]])  # ln 3
    asked = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = attention(asking, asked, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[[0.75, 0.25]]]))


@pytest.mark.parametrize("name", SEQUENCE_HEADS)
def test_each_modality_counts_by_each_of_its_rows(name: str) -> None:
    head, text, image = _head(name), _sequence(1, 3, TEXT_WIDTH, 0), _sequence(1, 4, IMAGE_WIDTH, 1)
    base = head(text, image)
    assert base.shape == (1, 3)
    for row in range(3):
        rows = text.rows.clone()
        rows[0, row] += 1
        assert not torch.allclose(base, head(text._replace(rows=rows), image), atol=1e-4)
    for row in range(4):
        rows = image.rows.clone()
        rows[0, row] += 1
        assert not torch.allclose(base, head(text, image._replace(rows=rows)), atol=1e-4)


@pytest.mark.parametrize("name", SEQUENCE_HEADS)
def test_what_the_text_becomes_depends_on_the_image(name: str) -> None:
    """The classifier sees the text's half alone: any effect of the image came through attention."""
    head = _head(name)
    with torch.no_grad():
        head.classifier[-1].weight[:, 8:] = 0
    text, image = _sequence(1, 3, TEXT_WIDTH, 0), _sequence(1, 4, IMAGE_WIDTH, 1)
    other = image._replace(rows=image.rows + torch.arange(4.0).view(1, 4, 1))
    assert not torch.allclose(head(text, image), head(text, other), atol=1e-5)
    if name == "bottleneck":  # through the shared tokens only
        with torch.no_grad():
            for layer in head.layers:
                for part in (layer.text, layer.image):
                    part.register_forward_hook(_without_shared)
        assert torch.allclose(head(text, image), head(text, other), atol=1e-6)


def _without_shared(module: Any, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """The output of a layer with the 4 shared tokens at its end set to zero."""
    return torch.cat([rows[:, :-4], torch.zeros_like(rows[:, -4:])], dim=1)


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(SEQUENCE_HEADS),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    padding=st.integers(0, 4),
    left=st.booleans(),
    seed=st.integers(0, 99),
)
def test_logits_depend_neither_on_padding_nor_on_the_batch(
    name: str, lengths: list[int], padding: int, left: bool, seed: int
) -> None:
    """Each text alone and unpadded, and all in one batch under padding that holds large numbers."""
    head, size = _head(name), max([*lengths, 1]) + padding
    image = _sequence(len(lengths), 4, IMAGE_WIDTH, seed)
    texts = [_sequence(1, max(length, 1), TEXT_WIDTH, seed + length) for length in lengths]
    rows = torch.full((len(lengths), size, TEXT_WIDTH), 1e3)
    mask = torch.zeros(len(lengths), size, dtype=torch.bool)
    alone = []
    for at, length in enumerate(lengths):
        place = slice(size - length, size) if left else slice(0, length)
        rows[at, place], mask[at, place] = texts[at].rows[0, :length], True
        text = _of(texts[at], [length > 0])
        alone.append(head(text, FeatureSequence(image.rows[at : at + 1], image.mask[at : at + 1])))
    together = head(FeatureSequence(rows, mask), image)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SEQUENCE_HEADS)
@pytest.mark.parametrize("missing", ["text", "image", "both"])
def test_a_missing_modality_has_no_effect_and_finite_gradients(name: str, missing: str) -> None:
    head = _head(name)

    def logits(noise: float) -> Tensor:
        text, image = _sequence(2, 3, TEXT_WIDTH, 0), _sequence(2, 4, IMAGE_WIDTH, 1)
        if missing != "image":
            text.rows[1] += noise
        if missing != "text":
            image.rows[1] += noise
        text_there, image_there = missing == "image", missing == "text"
        return head(_of(text, [True, text_there]), _of(image, [True, image_there]))

    first = logits(0.0)
    torch.testing.assert_close(first, logits(50.0))
    first.sum().backward()
    gradients = [parameter.grad for parameter in head.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", SEQUENCE_HEADS)
def test_a_stand_in_is_the_only_row_of_a_missing_modality(name: str) -> None:
    head, text, image = _head(name), _sequence(2, 3, TEXT_WIDTH, 0), _sequence(2, 4, IMAGE_WIDTH, 1)
    vector = torch.arange(float(IMAGE_WIDTH), requires_grad=True)
    replaced = image.where_present(torch.tensor([True, False]), vector)
    assert replaced.mask.tolist() == [[True] * 4, [True, False, False, False]]
    alone = FeatureSequence(vector.view(1, 1, -1), torch.ones(1, 1, dtype=torch.bool))
    found = head(text, replaced)
    second = FeatureSequence(text.rows[1:], text.mask[1:])
    torch.testing.assert_close(found[1:], head(second, alone))
    torch.testing.assert_close(found[:1], head(text, image)[:1])
    found.sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


def test_the_gate_weighs_image_against_text() -> None:
    """z = sigmoid(ln 3) = 3/4: three quarters of tanh(image), one quarter of tanh(text)."""
    config = FusionConfig.model_validate({"name": "gated", "width": 1})
    head = build_fusion(config, 1, 1, 2).eval()
    values = {
        "text_projection": [1.0],
        "image_projection": [1.0],
        "gate": [0.0, 0.0],
        "classifier.1": [1.0, -1.0],
    }
    with torch.no_grad():
        for name, weights in values.items():
            layer = head.get_submodule(name)
            layer.weight.copy_(torch.tensor(weights).view_as(layer.weight))
            layer.bias.fill_(1.0986123 if name == "gate" else 0.0)
    logits = head(torch.tensor([[1.0]]), torch.tensor([[-1.0]]))
    # tanh(1) = 0.761594; -0.75 x 0.761594 + 0.25 x 0.761594 = -0.380797
    torch.testing.assert_close(logits, torch.tensor([[-0.380797, 0.380797]]))
    torch.testing.assert_close(head.told["image_gate"], torch.tensor([0.75]))


def test_a_gate_for_each_feature_tells_its_mean() -> None:
    config = FusionConfig.model_validate({"name": "gated", "width": 4, "gates": "feature"})
    head = build_fusion(config, 3, 2, 2)
    assert head.gate.weight.shape == (4, 5)
    head(torch.randn(6, 3), torch.randn(6, 2))
    assert head.told["image_gate"].shape == (6,)
    assert not head.told["image_gate"].requires_grad


@pytest.mark.parametrize(
    ("fusion", "words"),
    [
        ({"name": "bottleneck", "num_layers": 1}, "greater than or equal to 2"),
        ({"name": "cross_attention", "width": 9}, "width 9 does not divide by num_heads 4"),
        ({"name": "gated", "gates": "row"}, "Input should be 'sample' or 'feature'"),
    ],
)
def test_wrong_settings_are_refused(fusion: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_fusion(FusionConfig.model_validate(fusion), 2, 1, 3)
