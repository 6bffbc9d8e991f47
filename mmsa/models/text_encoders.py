"""The text encoder: tokens to one row of features per text.

Shapes: B batch, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsa.errors import UserError
from mmsa.models.encoders import TEXT_SECTION, Encoder
from mmsa.models.eval_mode import eval_mode
from mmsa.models.fusion.sequences import Features, FeatureSequence
from mmsa.models.packed_texts import PackedTexts, pack_texts
from mmsa.models.text_pooling import Pooling, padding_id, pooled, reads_left_to_right


class TextEncoder(Encoder):
    """Tokens to features.

    In addition to the attributes of `Encoder`: `vocab_size` (token ids are below it),
    `max_positions` (the longest text in tokens, None where there is no limit), `pooling`, and
    `causal` (the body reads from left to right).
    """

    def __init__(
        self,
        body: nn.Module,
        *,
        pooling: Literal["auto"] | Pooling,
        projection: int | None,
        width: int,
        vocab_size: int,
    ) -> None:
        """`body(input_ids=, attention_mask=)` returns one row per token (B, T, `width`), alone or
        as the first of several outputs. With `pooling="own"` the second one is the features of
        the texts (B, `width`).

        `pooling="auto"` waits for `look_at_order`, which needs the body's weights.
        """
        super().__init__(body, width, projection)
        self.pooling: Pooling = "cls" if pooling == "auto" else pooling
        self._pooling_is_open = pooling == "auto"
        self.causal = False  # until `look_at_order` has looked
        self.vocab_size = vocab_size
        self.max_positions = _max_positions(body)
        self._first_position = _first_position(body)
        # Until `look_at_masks` has looked.
        self._takes_pairs = self._takes_packs = False

    def check_vocabulary(self, vocab_size: int | None) -> None:
        """Raise `UserError` where a tokenizer of `vocab_size` ids has more than the encoder."""
        if vocab_size is not None and vocab_size > self.vocab_size:
            raise UserError(
                f"the tokenizer has {vocab_size} ids and the text encoder {self.vocab_size}; use "
                f"the tokenizer that belongs to it ({TEXT_SECTION}.tokenizer: null)"
            )

    def look_at_order(self) -> None:
        """Find out whether the body reads from left to right; the body needs its weights by now.

        Where the pooling is `auto`, it becomes the token that knows the whole text: the last one in
        an encoder that reads from left to right (GPT-2, Qwen3, Llama), whose first token has seen
        no other. Other encoders keep the first token.
        """
        self.causal = reads_left_to_right(self.body, self.vocab_size)
        if self._pooling_is_open and self.causal:
            self.pooling = "last"
        self._pooling_is_open = False

    def begin_sequences(self, named: str) -> None:
        """Give the rows of all tokens from now on; `named` is for messages."""
        tokens = torch.zeros(1, 4, dtype=torch.long)
        self._begin_sequences(named, tokens, torch.ones_like(tokens))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """`input_ids` and `attention_mask` (B, T), int64 -> features (B, D), or (B, T, D)."""
        with self._body_gradient():
            if self.pooling == "own" and not self.gives_sequences:
                features = self.body(input_ids=input_ids, attention_mask=attention_mask)[1]
            else:
                features = self._hidden(input_ids, attention_mask)  # (B, T, D)
                if not self.gives_sequences:
                    features = pooled(features, attention_mask, self.pooling)
        features = self._project(features)  # not frozen with the body
        if self.gives_sequences:
            return FeatureSequence(features, attention_mask.bool())
        return features

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # One call of the body whatever the lengths: under ZeRO-3 each call is a collective.
        on_cpu = input_ids.device.type == "cpu"
        packed = None
        if on_cpu and self._takes_packs and not torch.compiler.is_compiling():
            packed = self._packed(input_ids, attention_mask)
        if packed is not None:
            return self._of_packed(packed)
        # transformers would make a mask over pairs from one over tokens, but it first asks the
        # device whether any token is masked, and waits for the answer.
        of_pairs = self._takes_pairs and attention_mask.is_cuda
        mask = pair_mask(attention_mask) if of_pairs else attention_mask
        return _rows(self.body(input_ids=input_ids, attention_mask=mask))

    def _of_packed(self, packed: PackedTexts) -> Tensor:
        hidden = self.body(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
        )[0]
        return packed.unpacked(hidden)

    def _packed(self, input_ids: Tensor, attention_mask: Tensor) -> PackedTexts | None:
        return pack_texts(
            input_ids,
            attention_mask,
            first_position=self._first_position,
            max_positions=self.max_positions,
        )

    @torch.no_grad()
    def look_at_masks(self) -> None:
        """Find out whether the body of transformers accepts a mask over pairs of tokens, with the
        result of a mask over tokens, and texts packed into one row.

        Not all do: DeBERTa makes its own mask, and attention by plain products adds masks. Layers
        with a local window (ModernBERT) would lose it under a mask over pairs, and causal ones
        their order.
        """
        config: Any = self.body.config
        if self.causal:
            return
        if getattr(config, "local_attention", None) or getattr(config, "sliding_window", None):
            return
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        # As in a batch: different tokens, and padding by its own id, from which some bodies count
        # positions.
        pad = padding_id(self.body) or 0
        others = [token for token in range(min(self.vocab_size, 8)) if token != pad]
        input_ids = torch.full_like(mask, pad)
        input_ids[mask > 0] = torch.tensor(list(islice(cycle(others), int(mask.sum()))))
        packed = self._packed(input_ids, mask)

        def agrees(hidden: Callable[[], Tensor]) -> bool:
            try:
                expected = self.body(input_ids=input_ids, attention_mask=mask)[0]
                return torch.allclose(hidden()[mask > 0], expected[mask > 0], atol=1e-5)
            except Exception:  # the body's code may raise anything (FlauBERT asserts)
                return False  # only speed depends on it: the mask over tokens is what bodies take

        with eval_mode(self):
            self._takes_pairs = agrees(
                lambda: self.body(input_ids=input_ids, attention_mask=pair_mask(mask))[0]
            )
            self._takes_packs = packed is not None and agrees(lambda: self._of_packed(packed))

    def take_masks_like(self, other: TextEncoder) -> None:
        """Accept the masks that `other`, of the same architecture, was found to accept."""
        self.causal = other.causal
        self._takes_pairs, self._takes_packs = other._takes_pairs, other._takes_packs


def _rows(output: Any) -> Tensor:
    """The rows of the tokens (B, T, D) in what a body returns."""
    rows: Tensor = output if isinstance(output, Tensor) else output[0]
    return rows


def pair_mask(attention_mask: Tensor) -> Tensor:
    """Mask (B, T) -> which tokens each token attends to, (B, 1, T, T) bool: those of text."""
    num_tokens = attention_mask.shape[1]
    return attention_mask[:, None, None, :].bool().expand(-1, 1, num_tokens, num_tokens)


def _position_embeddings(body: nn.Module) -> nn.Embedding | None:
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module
    return None


def _first_position(body: nn.Module) -> int:
    """The position of a text's first token: RoBERTa counts from behind the padding id."""
    table = _position_embeddings(body)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def _max_positions(body: nn.Module) -> int | None:
    """The longest text that the table of positions holds, or that the configuration states.

    Relative positions (DeBERTa-v3) have no table, and no limit where a number is stated.
    """
    table = _position_embeddings(body)
    if table is not None:
        return table.num_embeddings - _first_position(body)
    config = getattr(body, "config", None)
    if getattr(config, "relative_attention", False):
        return None
    stated = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions"))
    return next((limit for limit in stated if isinstance(limit, int) and limit > 0), None)
