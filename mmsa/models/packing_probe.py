"""Does a text encoder compute the same in another form: under another mask, or of packed texts?

Found out by trying a few tokens. Outputs alone do not show it: the code of an encoder may cut a
gradient, for example of the positions that it is given.

Shapes: B texts, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmsa.data.packed_texts import PackedTexts, TextPacking
from mmsa.models.text_pooling import padding_id

_LENGTHS = (4, 2, 1)  # as short as every encoder takes; packed into two rows with an empty slot
_OUTPUTS = 1e-5  # two outputs differ by rounding alone up to this
_GRADIENTS = 1e-4  # two gradients, as a share of the largest norm of a parameter's gradient


class ProbeTexts(NamedTuple):
    """Some texts, padded and packed."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    packed: PackedTexts


def probe_texts(body: nn.Module, vocab_size: int) -> ProbeTexts:
    """Texts as in a batch: different tokens, and padding by its own id, from which some encoders
    count positions."""
    mask = (torch.arange(max(_LENGTHS))[None] < torch.tensor(_LENGTHS)[:, None]).long()
    pad = padding_id(body) or 0
    others = [token for token in range(min(vocab_size, 8)) if token != pad] or [0]
    input_ids = torch.full_like(mask, pad)
    input_ids[mask > 0] = torch.tensor(list(islice(cycle(others), int(mask.sum()))))
    packed = TextPacking(max(_LENGTHS)).packed(input_ids, mask)
    assert packed is not None
    return ProbeTexts(input_ids, mask, packed)


def agrees(body: nn.Module, texts: ProbeTexts, other: Callable[[], Tensor]) -> bool:
    """Whether `other`, a second way to compute rows of `texts` (B, T, D) by `body`, gives the
    outputs of the padded texts, and the same gradient to each parameter that is trained.

    Changes nothing. The caller has put the body in eval mode: dropout would draw random numbers.
    Where nothing is trained, outputs alone are compared.
    """

    def padded() -> Tensor:
        output = body(input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        return output if isinstance(output, Tensor) else output[0]

    real = texts.attention_mask > 0
    try:
        with torch.enable_grad():
            expected, expected_gradients = _computed(body, padded, real)
            found, gradients = _computed(body, other, real)
    except Exception:  # the body's code may raise anything (FlauBERT asserts)
        return False  # only speed depends on it: padded texts are what all bodies take
    if not torch.allclose(found, expected, atol=_OUTPUTS):
        return False
    return _same_gradients(gradients, expected_gradients)


def _computed(
    body: nn.Module, forward: Callable[[], Tensor], real: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The rows of the real tokens (N, D), and the digests of the gradients of a sum of them."""
    rows = forward()[real]
    if not rows.requires_grad:
        return rows, {}
    # Different weights, because a sum of normalised rows is constant.
    weights = torch.cos(torch.arange(rows.numel(), dtype=rows.dtype)).view_as(rows)
    return rows.detach(), _gradient_digests(body, (rows * weights).sum())


def _gradient_digests(body: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """By the name of each trained parameter two numbers about its gradient of `loss`: its norm, and
    its sum with weights that tell its rows and columns apart.

    Each gradient is dropped at once, because all together need the memory of the weights again.
    """
    digests: dict[str, Tensor] = {}
    hooks = []

    def digest(name: str, parameter: Tensor) -> None:
        assert parameter.grad is not None
        rows = parameter.grad.float().reshape(len(parameter) if parameter.dim() else 1, -1)
        left = torch.cos(torch.arange(rows.shape[0], dtype=torch.float32))
        right = torch.cos(torch.arange(rows.shape[1], dtype=torch.float32) + 1)
        digests[name] = torch.stack([rows.norm(), left @ (rows @ right)])
        parameter.grad = None

    for name, parameter in body.named_parameters():
        if parameter.requires_grad:
            hooks.append(
                parameter.register_post_accumulate_grad_hook(
                    lambda found, name=name: digest(name, found)
                )
            )
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return digests


def _same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    if found.keys() != expected.keys():
        return False
    if not expected:
        return True
    one = torch.stack([found[name] for name in expected])  # (parameters, 2)
    other = torch.stack(list(expected.values()))
    # Some gradients are rounding alone: a key's bias changes nothing.
    norms = other[:, :1]
    return bool(((one - other).abs() <= _GRADIENTS * (norms + 1e-2 * norms.max())).all())
