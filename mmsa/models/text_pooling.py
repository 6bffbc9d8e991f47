"""From one row per token to one row per text, and which token's row knows the whole text.

Shapes: B batch, T tokens, D features.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsa.errors import UserError, first_line
from mmsa.models.eval_mode import eval_mode
from mmsa.models.fusion.sequences import masked_mean

Pooling = Literal["cls", "mean", "last", "own"]

_NUM_TOKENS = 4  # of a probe: as few as every text encoder takes
_SEES_NOTHING = 1e-6  # a difference up to this share of the largest value is none


def pooled(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """`hidden` (B, T, D) -> (B, D), by the tokens whose mask (B, T) is 1.

    `cls` is the first token, `last` the last one, `mean` the mean of all (float32). What a body
    pools itself (`own`) never gets here.
    """
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "last":
        return last_token(hidden, attention_mask)
    return masked_mean(hidden, attention_mask)


def last_token(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The row of `hidden` (B, T, D) at the last token whose mask (B, T) is 1: (B, D).

    Padding may be on either side. A row without any token gives its first.
    """
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask * positions).argmax(dim=1)  # (B,), without waiting for the device
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


@torch.no_grad()
def token_width(body: nn.Module, vocab_size: int, *, section: str, of_texts: bool = False) -> int:
    """D of the rows that `body` returns, found by a forward pass over a few tokens.

    With `of_texts` that of the features that the body pools itself, its second output.

    A configuration's `hidden_size` is not always it: OPT-350m projects 1,024 to 512. Raises
    `UserError` where the body does not read tokens, or does not return one row for each.
    """
    tokens = _some_tokens(body, vocab_size)
    try:
        hidden = _rows(body, torch.tensor([tokens]))
    except Exception as error:  # each network has its own types
        raise UserError(
            f"{section}: a {type(body).__name__} does not read a text of {_NUM_TOKENS} tokens "
            f"({first_line(error)}); use a text encoder such as bert-base-uncased"
        ) from None
    if not isinstance(hidden, Tensor) or hidden.shape[:-1] != (1, _NUM_TOKENS):
        found = tuple(getattr(hidden, "shape", ()))
        raise UserError(
            f"{section}: a {type(body).__name__} returns {found} for one text of {_NUM_TOKENS} "
            "tokens, and not one row per token; use a text encoder such as bert-base-uncased"
        )
    return _output(body, torch.tensor([tokens]))[1].shape[-1] if of_texts else hidden.shape[-1]


@torch.no_grad()
def reads_left_to_right(body: nn.Module, vocab_size: int) -> bool:
    """Whether the first token's row does not depend on the last token, while the last one's depends
    on the first, as in a causal encoder.

    Measured: configurations say it in many ways (`is_causal`, `use_bidirectional_attention`). The
    body needs its weights.
    """
    tokens = _some_tokens(body, vocab_size)
    other = next((token for token in tokens if token not in (tokens[0], tokens[-1])), None)
    if other is None:  # too few ids to see anything
        return False
    changed = [tokens, [*tokens[:-1], other], [other, *tokens[1:]]]
    rows = _rows(body, torch.tensor(changed))  # (3, T, D)
    return not _differs(rows[0, 0], rows[1, 0]) and _differs(rows[0, -1], rows[2, -1])


def _differs(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > _SEES_NOTHING * one.abs().max())


def padding_id(body: nn.Module) -> int | None:
    """The padding's id by the configuration of `body`; None where it states none."""
    pad = getattr(getattr(body, "config", None), "pad_token_id", None)
    return pad if isinstance(pad, int) else None


def _some_tokens(body: Any, vocab_size: int) -> list[int]:
    """Ids of different tokens without the padding, from which some bodies count positions."""
    pad = padding_id(body) or 0
    usable = [token for token in range(min(vocab_size, 8)) if token != pad] or [0]
    return list(islice(cycle(usable), _NUM_TOKENS))


def _rows(body: nn.Module, input_ids: Tensor) -> Tensor:
    """One row per token (B, T, D), in eval mode."""
    output = _output(body, input_ids)
    rows: Tensor = output if isinstance(output, Tensor) else output[0]
    return rows


def _output(body: nn.Module, input_ids: Tensor) -> Any:
    with eval_mode(body):
        return body(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
