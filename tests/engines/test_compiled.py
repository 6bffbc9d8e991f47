"""What `torch.compile` does is counted and said; compiled without a code generator, to be quick."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mmsa.engines.compiled import CompileWatch, is_compiled, mark_lengths


@pytest.fixture
def watch() -> Iterator[CompileWatch]:
    torch._dynamo.reset()
    watch = CompileWatch()
    yield watch
    watch.detach()
    torch._dynamo.reset()


class Summed(nn.Module):
    """Compiled again for each `times`, because it is a number of Python."""

    def forward(self, tokens: torch.Tensor, times: float = 1.0) -> torch.Tensor:
        return (tokens * times).sum(dim=1)


def compiled() -> Summed:
    module = Summed()
    assert not is_compiled(module)
    module.compile(backend="eager")
    assert is_compiled(module)
    return module


def test_a_marked_length_is_compiled_for_once(watch: CompileWatch) -> None:
    module = compiled()
    for step, length in enumerate((5, 9, 12, 7), 1):
        tokens = torch.ones(2, length)
        mark_lengths(tokens, None)
        assert module(tokens).tolist() == [length, length]
        expected = ["train.compile: 1 graph(s) compiled in the first step"] if step == 1 else []
        assert watch.news(step) == expected
    assert watch.recompiled == 0


def test_recompilations_are_counted(watch: CompileWatch) -> None:
    module = compiled()
    module(torch.ones(2, 5))
    watch.news(1)
    module(torch.ones(2, 9))  # not marked: the first length was compiled for alone
    assert watch.news(2) == [
        "train.compile: 1 graph(s) compiled again at step 2, 1 in all; TORCH_LOGS=recompiles says "
        "why"
    ]


def test_falling_back_is_said_aloud(watch: CompileWatch) -> None:
    module, said = compiled(), list[str]()
    with torch._dynamo.config.patch(recompile_limit=2):
        for step in range(1, 6):
            tokens = torch.ones(*([2] * step), 3)  # another number of dimensions each time
            module(tokens)
            said += [words for words in watch.news(step) if "uncompiled" in words]
    assert len(said) == 1
    assert "from step 3 on a function runs uncompiled" in said[0]
    assert "hit config.recompile_limit (2) function: 'forward'" in said[0]
