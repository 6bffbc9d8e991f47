"""The switches of a GPU's kernels: one float32, chosen attention. They exist without a GPU too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmsa.config import GpuConfig, ModelConfig, load_config
from mmsa.engines import engine, gpu_kernels
from mmsa.engines.gpu_kernels import (
    allow_attention,
    attention_in_words,
    choose_kernels,
    kernel_facts,
)
from mmsa.errors import UserError
from mmsa.models.model import build_model
from mmsa.process.runtime import World
from mmsa.training import model_for_engine
from mmsa.training.model_for_engine import check_taken_by_launch
from tests.models.tiny import image_settings, text_settings

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def switches_as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    choose_kernels("no", GpuConfig(), training=False)
    allow_attention(("flash", "efficient", "cudnn", "math"))


@pytest.mark.parametrize(
    ("precision", "tf32"), [("no", False), ("tf32", True), ("bf16", False), ("fp16", False)]
)
def test_a_precision_is_one_for_convolutions_and_matrix_products(
    precision: str, tf32: bool
) -> None:
    torch.backends.cudnn.allow_tf32 = not tf32  # PyTorch's default is True, of matmul False
    choose_kernels(precision, GpuConfig(), training=True)
    facts = kernel_facts()
    assert (facts["tf32_matmul"], facts["tf32_convolution"]) == (tf32, tf32)
    assert gpu_kernels.computes_in_tf32() is tf32


def test_strict_float32_puts_back_what_the_process_had() -> None:
    choose_kernels("tf32", GpuConfig(), training=True)
    with gpu_kernels.strict_float32():
        with gpu_kernels.strict_float32():  # as by another thread
            assert not kernel_facts()["tf32_matmul"]
        assert not kernel_facts()["tf32_matmul"]
        assert not kernel_facts()["tf32_convolution"]
    assert gpu_kernels.computes_in_tf32()


@pytest.mark.parametrize(
    ("training", "wanted", "deterministic", "expected"),
    [(True, True, False, True), (False, True, False, False), (True, False, False, False),
     (True, True, True, False)],
)  # fmt: skip
def test_cudnn_tries_its_convolutions_in_training_alone(
    training: bool, wanted: bool, deterministic: bool, expected: bool
) -> None:
    torch.use_deterministic_algorithms(deterministic)
    choose_kernels("bf16", GpuConfig(cudnn_benchmark=wanted), training=training)
    assert torch.backends.cudnn.benchmark is expected


def test_attention_of_cudnn_is_off_unless_it_is_named() -> None:
    cuda = torch.backends.cuda
    allow_attention(GpuConfig().attention)
    assert not cuda.cudnn_sdp_enabled()
    assert cuda.flash_sdp_enabled()
    assert cuda.mem_efficient_sdp_enabled()
    assert cuda.math_sdp_enabled()
    allow_attention(("cudnn", "math"))
    assert cuda.cudnn_sdp_enabled()
    assert not cuda.flash_sdp_enabled()
    assert not cuda.mem_efficient_sdp_enabled()
    choose_kernels("bf16", GpuConfig(attention=("efficient",)), training=True)
    assert not cuda.flash_sdp_enabled()  # there is no GPU: nothing was touched
    assert not cuda.mem_efficient_sdp_enabled()


def test_the_backend_of_an_encoder_is_told() -> None:
    def body(**config: object) -> nn.Module:
        module = nn.Module()
        module.config = SimpleNamespace(**config)  # type: ignore[assignment]
        return module

    sdpa = body(_attn_implementation="sdpa", num_attention_heads=2, hidden_size=32)
    told = attention_in_words(sdpa, CPU, torch.float32)
    assert told == "PyTorch's, flash_attention for masked texts in float32"
    allow_attention(("math",))
    assert "math for masked" in attention_in_words(sdpa, CPU, torch.float32)
    assert attention_in_words(body(_attn_implementation="eager"), CPU, torch.float32) == (
        "the encoder's own (eager)"
    )
    assert attention_in_words(nn.Linear(2, 2), CPU, torch.float32) == "the encoder's own"


@pytest.mark.parametrize(
    ("attention", "head", "told"),
    [
        ("[flash]", "concat", "its text encoder has attention under a mask"),
        ("[flash]", "bottleneck", "its text encoder and its head have attention"),
        ("[flash,flash]", "text_only", "gpu.attention=[flash] cannot be used"),
        ("[flash]", "image_only", None),
        ("[flash,math]", "bottleneck", None),
        ("[efficient]", "concat", None),
    ],
)
def test_flash_alone_is_refused_where_attention_has_a_mask(
    attention: str, head: str, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, image = text_settings(), image_settings()
    section = {"text_encoder": text, "image_encoder": image, "fusion": {"name": head}}
    model = build_model(ModelConfig.model_validate(section), 3)
    config = load_config(None, [f"gpu.attention={attention}"])
    check_taken_by_launch(model, config, World())  # on a CPU it changes nothing
    monkeypatch.setattr(model_for_engine, "device_type", lambda: "cuda")
    with nullcontext() if told is None else pytest.raises(UserError, match=re.escape(told)):
        check_taken_by_launch(model, config, World())


def test_tf32_is_refused_without_a_gpu() -> None:
    config = load_config(None, ["train.mixed_precision=tf32"])
    with pytest.raises(UserError, match="tf32 is how NVIDIA's GPUs .* this machine has none"):
        engine.check_device(config, World())


def test_an_accelerator_says_the_precision_that_the_switches_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accelerator = engine.make_accelerator("no")
    assert engine.precision(accelerator) == "no"
    assert not torch.backends.cudnn.allow_tf32
    choose_kernels("tf32", GpuConfig(), training=False)
    assert engine.precision(accelerator) == "tf32"
