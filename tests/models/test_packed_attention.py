"""Attention by the bounds of packed texts: what an encoder hands over, shown text by text on a CPU.

The kernel itself exists on CUDA alone and is not run here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmsa.config import GpuConfig
from mmsa.data.packed_texts import TextPacking
from mmsa.engines.gpu_texts import PackedAttention, choose_packed_attention, text_layout
from mmsa.models import packed_attention
from mmsa.models.model import SentimentModel
from mmsa.models.packed_attention import Bounds
from tests.models.test_packing import LENGTHS, PACKED, PADDED, encoder, packed_for, texts

CUDA = torch.device("cuda", 0)
BF16 = torch.bfloat16


def model(**sizes: Any) -> SentimentModel:
    return SentimentModel(encoder(**sizes), None, torch.nn.Identity())  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "gpt2", "qwen3"])
def test_bounds_give_the_features_and_gradients_of_a_mask(model_type: str) -> None:
    made = encoder(model_type=model_type, **PACKED[model_type])
    ids, mask = texts(LENGTHS)
    packed = packed_for(made, ids, mask, 8)
    assert made.takes_bounds()
    found = []
    for by_bounds in (False, True):
        if by_bounds:
            made.use_bounds()
        made.zero_grad()
        features = made(ids, mask, packed)
        (features * torch.arange(8)).sum().backward()
        found.append([features, *(p.grad for p in made.parameters() if p.grad is not None)])
    largest = max(float(one.abs().max()) for one in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest)
    # It is not the mask any more that keeps texts apart.
    blurred = packed._replace(texts=packed.texts.clamp(min=0))
    hidden = made._of_packed(blurred)
    torch.testing.assert_close(hidden, made._of_packed(packed))


@pytest.mark.parametrize("model_type", ["bert", "qwen3"])
def test_the_kernel_gets_the_types_of_autocast(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions and norms leave queries and keys in float32: autocast casts them for
    PyTorch's attention, and not for the kernel, which a second implementation stands in for."""
    made = encoder(model_type=model_type, **PACKED[model_type])
    ids, mask = texts(LENGTHS)
    packed = packed_for(made, ids, mask, 8)
    made.use_bounds()
    made.eval()
    by_text, given = packed_attention.by_text, []

    def kernel(query: Any, key: Any, value: Any, begins: Any, *others: Any, **named: Any) -> Any:
        given.extend([query.dtype, key.dtype, value.dtype])
        bounds = Bounds(begins, others[1], named["window_size"] == (-1, 0))
        return by_text(query, key, value, bounds, named["scale"])

    with torch.no_grad(), torch.autocast("cpu", BF16):
        expected = made(ids, mask, packed)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
        monkeypatch.setattr(packed_attention, "by_text", packed_attention.by_kernel)
        assert torch.equal(made(ids, mask, packed), expected)
    assert set(given) == {BF16}
    given.clear()
    with torch.no_grad():
        made(ids, mask, packed)
    assert set(given) == {torch.float32}


@pytest.mark.parametrize("model_type", ["deberta-v2", "mpnet"])
def test_an_encoder_that_is_not_packed_takes_no_bounds(model_type: str) -> None:
    assert not encoder(model_type=model_type, **PADDED[model_type]).takes_bounds()


def test_an_encoder_that_keeps_the_bounds_to_itself_takes_none() -> None:
    made = encoder()
    forward = made.body.forward

    def without_bounds(**named: Any) -> Any:
        named.pop("packed_bounds", None)
        return forward(**named)

    made.body.forward = without_bounds
    assert not made.takes_bounds()
    assert made.body.config._attn_implementation == "sdpa"


def test_padded_texts_and_dropout_have_the_usual_attention() -> None:
    made = encoder()
    ids, mask = texts(LENGTHS)
    packed = packed_for(made, ids, mask)
    made.train()  # with BERT's dropout of attention weights
    found = []
    for by_bounds in (False, True):
        if by_bounds:
            made.use_bounds()
        for form in (None, packed):
            torch.manual_seed(0)
            found.append(made(ids, mask, form))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_texts_by_the_kernel_or_not() -> None:
    """On a CPU the kernel is refused with the reason, and so is float32."""
    body = encoder().body
    problem = packed_attention.kernel_problem(body, torch.device("cpu"), BF16, is_causal=False)
    assert problem == "the kernel exists on CUDA alone, and this is cpu"
    problem = packed_attention.kernel_problem(body, CUDA, torch.float32, is_causal=False)
    assert problem == "the kernel computes in bf16 or fp16, and this is float32"
    found = packed_attention.by_text(
        *(torch.randn(4, 2, 3) for _ in range(3)),
        Bounds(torch.tensor([0, 3, 3, 4], dtype=torch.int32), 4, False),
        None,
    )
    assert found.shape == (4, 2, 3)
    assert found.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernel may work here")
def test_a_kernel_that_fails_is_said_aloud() -> None:
    chosen = choose_packed_attention(model(), GpuConfig(), CUDA, BF16)
    assert chosen.fell_back
    assert chosen.words.startswith(
        "packed, under a mask; variable-length attention (gpu.packing=auto) cannot be used: it "
        "fails ("
    )
    strict = choose_packed_attention(model(), GpuConfig(), CUDA, torch.float32)
    assert not strict.fell_back  # nothing is wrong with this GPU
    assert strict.words.endswith("and this is float32")


def test_a_kernel_that_agrees_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "kernel_problem", lambda *_, **__: None)
    made = model()
    chosen = choose_packed_attention(made, GpuConfig(), CUDA, BF16)
    assert chosen == PackedAttention(
        "packed, with variable-length attention in validation; in training under a mask, because "
        "the kernel has no dropout"
    )
    assert made.text_encoder is not None
    assert made.text_encoder.body.config._attn_implementation == packed_attention.NAME
    chosen = choose_packed_attention(
        model(attention_probs_dropout_prob=0.0), GpuConfig(), CUDA, BF16
    )
    assert chosen.words == "packed, with variable-length attention"


@pytest.mark.parametrize(
    ("packing", "device", "words"),
    [
        ("off", "cuda", "padded (gpu.packing=off)"),
        ("mask", "cuda", "packed, under a mask (gpu.packing=mask)"),
        ("off", "cpu", "packed, under a mask"),
    ],
)
def test_the_setting_is_for_gpus(packing: Any, device: str, words: str) -> None:
    gpu, made = GpuConfig(packing=packing, pad_tokens_to=16), model()
    assert choose_packed_attention(made, gpu, torch.device(device), BF16).words == words
    layout = text_layout(made, gpu, device)
    expected = TextPacking(40, 16 if device == "cuda" else 1)
    assert layout.packing == (None if (packing, device) == ("off", "cuda") else expected)
    assert layout.pad_tokens_to == (16 if device == "cuda" else 1)


def test_encoders_that_are_padded_say_so() -> None:
    made = model(model_type="mpnet", **PADDED["mpnet"])
    chosen = choose_packed_attention(made, GpuConfig(), CUDA, BF16)
    assert chosen.words == "padded, because this encoder does not take packed ones"
    assert text_layout(made, GpuConfig(), "cuda").packing is None
