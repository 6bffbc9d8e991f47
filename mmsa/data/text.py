"""Texts to padded token ids, one batch per call, with a Hugging Face fast tokenizer.

Legend: B batch, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmsa.errors import UserError, first_line
from mmsa.hub import from_hub

TruncationSide = Literal["right", "left"]

# Capitals, accents, an emoji, two scripts, an address: what tokenizers treat differently.
_TEST_TEXT = "The FIRST café of @user_1: naïve?! 😀 東京 don't  http://t.co/Ab1 #tag"
_SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}


class TextTokenizer:
    """A fast tokenizer that truncates to `max_tokens` and pads to the longest text of the batch.

    `truncation_side` says which end of a longer text is cut.
    """

    def __init__(
        self, tokenizer: Any, max_tokens: int, truncation_side: TruncationSide | None = None
    ) -> None:
        """`tokenizer`: a Hugging Face tokenizer with a Rust backend, as all common ones have.

        `truncation_side` replaces the tokenizer's own (an export has that of its training).
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} has no fast version; "
                "choose a text encoder whose tokenizer has one"
            )
        # Generating models (GPT-2) have no padding token. Under the mask every id does.
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        if pad is None and end is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has neither a padding token nor an end "
                "token; set one in its tokenizer_config.json (pad_token or eos_token)"
            )
        self.pad_id: int = end if pad is None else pad
        # A text without any token would leave nothing to attend to and nothing to pool.
        self.empty_ids: list[int] = [pad if end is None else end]
        self.hugging_face = tokenizer
        self.max_tokens = max_tokens
        self.truncation_side: TruncationSide = truncation_side or tokenizer.truncation_side
        # A copy: the settings below must not leak into a saved tokenizer.
        self._backend = type(tokenizer.backend_tokenizer).from_str(
            tokenizer.backend_tokenizer.to_str()
        )
        self._backend.enable_truncation(max_tokens, direction=self.truncation_side)
        self._backend.no_padding()  # __call__ pads, without a list of Python numbers for the mask

    @property
    def vocab_size(self) -> int:
        return len(self.hugging_face)

    @property
    def backend_json(self) -> str:
        """All that decides about token ids; equal for tokenizers that give the same ones."""
        return str(self._backend.to_str())

    def __call__(self, texts: Sequence[str], *, pad_to: int = 1) -> tuple[Tensor, Tensor]:
        """(input_ids (B, T), attention_mask (B, T)), int64, padded to the longest text.

        T is a multiple of `pad_to`, or `max_tokens` where the next multiple would be more.

        Padding is on the right, where a causal encoder's tokens never see it. A text without any
        token is one end token.
        """
        encodings = self._backend.encode_batch_fast(list(texts))
        rows = [encoding.ids or self.empty_ids for encoding in encodings]
        lengths = np.array([len(row) for row in rows])
        longest = int(lengths.max())
        padded = max(longest, min(-(-longest // pad_to) * pad_to, self.max_tokens))
        real = np.arange(padded) < lengths[:, None]  # (B, T)
        ids = np.full(real.shape, self.pad_id, dtype=np.int64)
        ids[real] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=lengths.sum())
        return torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64))

    def save(self, directory: Path) -> None:
        self.hugging_face.save_pretrained(str(directory))


def load_tokenizer(
    name: str, max_tokens: int, truncation_side: TruncationSide | None = None
) -> TextTokenizer:
    """The tokenizer of a Hugging Face name or directory.

    `truncation_side` is that of an export; without it the tokenizer's own holds, and the token ids
    of test texts are compared with its own. Raises `UserError` if it cannot be loaded, or if it
    gives other ids than its backend.
    """
    from transformers import AutoTokenizer

    tokenizer = TextTokenizer(
        from_hub(AutoTokenizer.from_pretrained, name), max_tokens, truncation_side
    )
    if truncation_side is None:
        _compare(tokenizer, name)
    return tokenizer


def _compare(tokenizer: TextTokenizer, name: str) -> None:
    """Raise `UserError` where the Hugging Face tokenizer does more than the backend used here."""
    long = " ".join([_TEST_TEXT, *map(str, range(tokenizer.max_tokens)), _TEST_TEXT])
    for kind, text in (("short", _TEST_TEXT), ("long", long)):
        ids, _ = tokenizer([text])
        ours, own = ids[0].tolist(), _own_ids(tokenizer, text, name)
        if ours != own:
            pairs = enumerate(zip_longest(ours, own))
            at = next(place for place, pair in pairs if pair[0] != pair[1])
            raise UserError(
                f"the tokenizer of {name} ({type(tokenizer.hugging_face).__name__}) cannot be "
                f"reproduced: of a {kind} test text it makes {len(own)} ids and its fast backend "
                f"{len(ours)}, and they differ from id {at} on. Expected the same ids: choose "
                "another tokenizer"
            )


def _own_ids(tokenizer: TextTokenizer, text: str, name: str) -> list[int]:
    """The ids of the Hugging Face tokenizer itself, which is left as it was."""
    hugging_face = tokenizer.hugging_face
    backend = hugging_face.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    try:
        own = hugging_face(text, truncation=True, max_length=tokenizer.max_tokens)
        return [int(number) for number in own["input_ids"]]
    except Exception as error:  # a tokenizer's code may raise anything
        raise UserError(
            f"the tokenizer of {name} does not take a text ({first_line(error, with_type=True)}); "
            "choose another"
        ) from None
    finally:
        # The call sets both in the backend, which is saved with an export.
        backend.no_truncation()
        backend.no_padding()
        if truncation is not None:
            backend.enable_truncation(**truncation)
        if padding is not None:
            backend.enable_padding(**padding)


def word_tokenizer(texts: Iterable[str], num_words: int, max_tokens: int) -> TextTokenizer:
    """A tokenizer of the `num_words` most common lower-case words of `texts`; others are unknown.

    For encoders without pretrained weights. It needs no download. The vocabulary (by count, then
    alphabetically) does not depend on the order of the texts.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    normalizer = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        words = splitter.pre_tokenize_str(normalizer.normalize_str(text))
        counts.update(word for word, _ in words)
    commonest = sorted(counts, key=lambda word: (-counts[word], word))[:num_words]
    # A word that is spelled like a special token gets the special token's id.
    vocabulary = dict.fromkeys([*_SPECIAL_TOKENS.values(), *commonest])
    ids = {word: number for number, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=_SPECIAL_TOKENS["unk"]))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    cls, sep = _SPECIAL_TOKENS["cls"], _SPECIAL_TOKENS["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{f"{role}_token": token for role, token in _SPECIAL_TOKENS.items()},
    )
    return TextTokenizer(tokenizer, max_tokens)
