"""The text encoder: tokens to one row of features per text.

Shapes: B batch, T tokens, D features.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsa.data.packed_texts import PackedTexts, TextPacking
from mmsa.errors import UserError
from mmsa.models import packed_attention
from mmsa.models.encoders import TEXT_SECTION, Encoder
from mmsa.models.eval_mode import eval_mode
from mmsa.models.fusion.sequences import Features, FeatureSequence
from mmsa.models.packed_attention import Bounds
from mmsa.models.packing_probe import agrees, probe_texts
from mmsa.models.text_pooling import Pooling, pooled, reads_left_to_right


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
        self._gives_bounds = False  # until `use_bounds`

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

    def packing(self, pad_rows_to: int = 1) -> TextPacking | None:
        """How a loader packs texts for this encoder; None where they must be padded."""
        if not self._takes_packs:
            return None
        return TextPacking(self.max_positions, pad_rows_to)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, packed: PackedTexts | None = None
    ) -> Features:
        """`input_ids` and `attention_mask` (B, T), int64 -> features (B, D), or (B, T, D).

        `packed` are the same texts, packed as `packing` says: the same features for fewer tokens.
        """
        with self._body_gradient():
            if self.pooling == "own" and not self.gives_sequences:
                features = self.body(input_ids=input_ids, attention_mask=attention_mask)[1]
            else:
                features = self._hidden(input_ids, attention_mask, packed)  # (B, T, D)
                if not self.gives_sequences:
                    features = pooled(features, attention_mask, self.pooling)
        features = self._project(features)  # not frozen with the body
        if self.gives_sequences:
            return FeatureSequence(features, attention_mask.bool())
        return features

    def _hidden(
        self, input_ids: Tensor, attention_mask: Tensor, packed: PackedTexts | None
    ) -> Tensor:
        # One call of the body whatever the lengths: under ZeRO-3 each call is a collective.
        if packed is not None and self._takes_packs:
            return packed.unpacked(self._of_packed(packed), *input_ids.shape)
        # transformers would make a mask over pairs from one over tokens, but it first asks the
        # device whether any token is masked, and waits for the answer.
        of_pairs = self._takes_pairs and attention_mask.is_cuda
        mask = pair_mask(attention_mask) if of_pairs else attention_mask
        return _rows(self.body(input_ids=input_ids, attention_mask=mask))

    def _of_packed(self, packed: PackedTexts) -> Tensor:
        """Rows (P, S, D) of the slots."""
        mask, more = packed.attention_mask(), {}
        if self._gives_bounds:
            num_slots = packed.input_ids.shape[1]
            more["packed_bounds"] = Bounds(packed.bounds, num_slots, self.causal)
        output = self.body(
            input_ids=packed.input_ids,
            attention_mask=mask.tril() if self.causal else mask,
            position_ids=packed.positions + self._first_position,
            **more,
        )
        return _rows(output)

    def takes_bounds(self) -> bool:
        """Whether the body hands the bounds of packed texts to an attention that we give it, with
        the outputs and gradients of padded texts."""
        if not self._takes_packs or not packed_attention.can_use(self.body):
            return False
        texts = probe_texts(self.body, self.vocab_size)

        # A mask that shows all texts of a row to each other: only the bounds keep them apart.
        one_text = texts.packed._replace(texts=torch.zeros_like(texts.packed.texts))

        def of_bounds() -> Tensor:
            rows = self._of_packed(one_text)
            return texts.packed.unpacked(rows, *texts.input_ids.shape)

        before = self._gives_bounds
        try:
            self._gives_bounds = True
            with eval_mode(self), packed_attention.used(self.body):
                return agrees(self.body, texts, of_bounds)
        finally:
            self._gives_bounds = before

    def use_bounds(self) -> None:
        """Compute packed texts by their bounds from now on (`packed_attention`)."""
        packed_attention.use(self.body, packed=True)
        self._gives_bounds = True

    def look_at_masks(self) -> None:
        """Find out whether the body of transformers takes a mask over pairs of tokens, and texts
        packed into rows, with the outputs and gradients of a mask over tokens.

        Not all do: DeBERTa makes its own mask, attention by plain products adds masks, and MPNet
        counts positions itself. Layers with a local window (ModernBERT) would lose it.
        """
        config: Any = self.body.config
        if getattr(config, "local_attention", None) or getattr(config, "sliding_window", None):
            return
        texts = probe_texts(self.body, self.vocab_size)

        def of_pairs() -> Tensor:
            mask = pair_mask(texts.attention_mask)
            return _rows(self.body(input_ids=texts.input_ids, attention_mask=mask))

        def of_packs() -> Tensor:
            return texts.packed.unpacked(self._of_packed(texts.packed), *texts.input_ids.shape)

        # Without the order of tokens, which a causal body has in its own mask.
        with eval_mode(self):
            self._takes_pairs = not self.causal and agrees(self.body, texts, of_pairs)
            self._takes_packs = agrees(self.body, texts, of_packs)

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
