"""Text encoders: any Hugging Face encoder by name or directory, pooled to one row per text.

Shapes: B batch, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmsa.config import TextEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import from_hub
from mmsa.models.encoders import (
    Encoder,
    hf_config_from_dict,
    hf_config_to_dict,
    trained_parts,
)
from mmsa.models.packed_texts import PackedTexts, pack_texts
from mmsa.models.recompute import recompute_in_backward
from mmsa.models.weights import export_encoder_config, is_export

_SECTION = "model.text_encoder"


class TextEncoder(Encoder):
    """Tokens to features.

    Beside what `Encoder` has: `hf_config` (the sizes, enough to build the same body again),
    `vocab_size` (token ids lie below it) and `max_positions` (the longest text in tokens, None
    where there is no limit).
    """

    def __init__(
        self, body: nn.Module, *, pooling: Literal["cls", "mean"], projection: int | None
    ) -> None:
        config: Any = body.config
        super().__init__(body, config.hidden_size, projection)
        self.pooling = pooling
        # The number of ids always: without it a tokenizer would set it when this is built again.
        self.hf_config = {**hf_config_to_dict(config), "vocab_size": config.vocab_size}
        self.vocab_size: int = config.vocab_size
        self.max_positions = _max_positions(body)
        self._first_position = _first_position(body)
        # Until `look_at_masks` has looked.
        self._takes_pairs = self._takes_packs = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """`input_ids` and `attention_mask` (B, T), int64 -> features (B, D)."""
        with self._body_gradient():
            hidden = self._hidden(input_ids, attention_mask)  # (B, T, D)
            pooled = hidden[:, 0] if self.pooling == "cls" else masked_mean(hidden, attention_mask)
        return self._project(pooled)

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # One call of the body whatever the lengths: under ZeRO-3 each call is a collective.
        on_cpu = input_ids.device.type == "cpu"
        packed = None
        if on_cpu and self._takes_packs and not torch.compiler.is_compiling():
            packed = self._packed(input_ids, attention_mask)
        if packed is not None:
            return self._of_packed(packed)
        # From a mask over tokens transformers makes one over pairs by itself, but it first asks
        # the device whether any token is masked, and waits for the answer.
        of_pairs = self._takes_pairs and attention_mask.is_cuda
        mask = pair_mask(attention_mask) if of_pairs else attention_mask
        hidden: Tensor = self.body(input_ids=input_ids, attention_mask=mask)[0]
        return hidden

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
        """Find out whether the body takes a mask over pairs, to the same effect as one over tokens,
        and texts packed into one row.

        Not all do: DeBERTa makes its own, and attention by plain products adds masks up. Layers
        that look through a window (ModernBERT) would lose it to a mask over pairs.
        """
        config: Any = self.body.config
        if getattr(config, "local_attention", None) or getattr(config, "sliding_window", None):
            return
        training = self.training
        self.eval()  # no dropout: the generator that seeds weights must not be drawn from
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        # As in a batch: tokens that differ, and padding by its own id, which some count places by.
        pad = getattr(config, "pad_token_id", None) or 0
        others = [token for token in range(min(self.vocab_size, 8)) if token != pad]
        input_ids = torch.full_like(mask, pad)
        input_ids[mask > 0] = torch.tensor(list(islice(cycle(others), int(mask.sum()))))
        expected = self.body(input_ids=input_ids, attention_mask=mask)[0]
        packed = self._packed(input_ids, mask)

        def agrees(hidden: Callable[[], Tensor]) -> bool:
            try:
                return torch.allclose(hidden()[mask > 0], expected[mask > 0], atol=1e-5)
            except (ValueError, RuntimeError, IndexError, TypeError):
                return False  # a choice for speed alone: the mask over tokens always works

        self._takes_pairs = agrees(
            lambda: self.body(input_ids=input_ids, attention_mask=pair_mask(mask))[0]
        )
        self._takes_packs = packed is not None and agrees(lambda: self._of_packed(packed))
        self.train(training)


def pair_mask(attention_mask: Tensor) -> Tensor:
    """Which tokens each token looks at, (B, 1, T, T) bool, of a mask (B, T): those of text."""
    num_tokens = attention_mask.shape[1]
    return attention_mask[:, None, None, :].bool().expand(-1, 1, num_tokens, num_tokens)


def masked_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of `hidden` (B, T, D) over the tokens whose mask (B, T) is 1: (B, D), float32.

    A row without any token is zeros. Summed in float32, because long sums in bfloat16 lose digits.
    """
    mask = attention_mask.unsqueeze(-1).float()  # (B, T, 1)
    return (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def build_text_encoder(config: TextEncoderConfig, vocab_size: int | None = None) -> TextEncoder:
    """Build the encoder of `config`, with its weights, and freeze what is not trained.

    `vocab_size` is the number of ids of the tokenizer: fresh weights are made for it unless the
    configuration gives a number; an encoder that has fewer is refused. Fresh weights come from
    torch's global generator: the caller seeds it.

    Raises `UserError` for weights that cannot be had or do not fit, and for wrong settings.
    """
    body, source = _body(config, vocab_size)
    encoder = TextEncoder(body, pooling=config.pooling, projection=config.projection)
    if vocab_size is not None and vocab_size > encoder.vocab_size:
        raise UserError(
            f"the tokenizer has {vocab_size} ids and the text encoder {encoder.vocab_size}; use "
            f"the tokenizer that belongs to it ({_SECTION}.tokenizer: null)"
        )
    if source is None:  # an export
        encoder.load_export(Path(config.weights).expanduser(), "text_encoder")
    else:
        encoder.source = source
    encoder.train_only(_trained(config, body))
    encoder.look_at_masks()
    _leave_out_unused(encoder)
    if config.gradient_checkpointing:
        recompute_in_backward(_layers(encoder.body)[0], section=_SECTION)
    return encoder


def _body(config: TextEncoderConfig, vocab_size: int | None) -> tuple[nn.Module, str | None]:
    """The network and where its weights came from; None where an export is still to be loaded."""
    if config.weights == "none":
        return _fresh(_architecture(config, vocab_size, None)), "fresh (seeded)"
    if config.weights == "pretrained":
        if config.config is not None:
            raise UserError(
                f"{_SECTION}.config is for {_SECTION}.weights: none or an export; pretrained "
                "weights bring their own. Take one of the two out"
            )
        return _pretrained(config.name), f"pretrained from {config.name}"
    path = Path(config.weights).expanduser()
    if is_export(path):
        return _fresh(_architecture(config, vocab_size, path)), None
    if (path / "config.json").is_file():
        if config.config is not None:
            raise UserError(
                f"{_SECTION}.config is for {_SECTION}.weights: none or an export; {path} brings "
                "its own. Take one of the two out"
            )
        return _pretrained(str(path)), f"pretrained from {path}"
    raise UserError(
        f"{_SECTION}.weights={config.weights}: no export (model.safetensors, as in RUN/best) and "
        "no Hugging Face directory (config.json) is there; give one, or pretrained, or none"
    )


def _architecture(config: TextEncoderConfig, vocab_size: int | None, export: Path | None) -> Any:
    from transformers import AutoConfig

    sizes = config.config
    if sizes is None and export is not None:
        sizes = export_encoder_config(export, "text_encoder")
    if sizes is None:
        architecture = from_hub(AutoConfig.from_pretrained, config.name)
    else:
        architecture = hf_config_from_dict(sizes, section=_SECTION)
    if vocab_size is not None and export is None and "vocab_size" not in (sizes or {}):
        architecture.vocab_size = vocab_size
    return architecture


def _fresh(architecture: Any) -> nn.Module:
    from transformers import AutoModel

    try:
        model = AutoModel.from_config(architecture)
    except (ValueError, AssertionError) as error:
        raise UserError(f"{_SECTION}.config: no encoder can be built of it: {error}") from None
    return _encoder_part(model)


def _pretrained(name: str) -> nn.Module:
    from transformers import AutoModel

    model, info = from_hub(
        lambda place, **options: AutoModel.from_pretrained(
            place, output_loading_info=True, **options
        ),
        name,
    )
    body = _encoder_part(model)
    own = {key for key, _ in body.named_parameters()}
    missing = sorted(own & set(info["missing_keys"]))
    if missing:
        raise UserError(
            f"the weights of {name} lack {len(missing)} tensors of the encoder ({missing[0]}, ...);"
            " they would stay random. Give complete weights, or weights: none"
        )
    return body


def _encoder_part(model: Any) -> nn.Module:
    """The part that reads a text, in float32: no decoder, no pooler (it would get no gradient)."""
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    if not hasattr(model.config, "hidden_size") or not hasattr(model.config, "vocab_size"):
        raise UserError(
            f"{_SECTION}: a model of type '{model.config.model_type}' is no text encoder; use one "
            "such as bert-base-uncased"
        )
    return model.float()


def _trained(config: TextEncoderConfig, body: nn.Module) -> list[nn.Module]:
    layers, above = _layers(body)
    return trained_parts(
        config.train, config.last_n, body=body, layers=layers, above=above, section=_SECTION
    )


def _layers(body: Any) -> tuple[list[nn.Module], list[nn.Module]]:
    """The transformer layers from the input on, and the norms that stand behind them."""
    number = getattr(body.config, "num_hidden_layers", None)
    layers: nn.ModuleList | None = None
    above: list[nn.Module] = []
    for _, module in body.named_modules():
        if layers is None and isinstance(module, nn.ModuleList) and len(module) == number:
            layers = module
            inside = set(module.modules())
        elif layers is not None and module not in inside and "Norm" in type(module).__name__:
            above.append(module)
    return ([], []) if layers is None else (list(layers), above)


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
    table = _position_embeddings(body)
    return None if table is None else table.num_embeddings - _first_position(body)


def _leave_out_unused(encoder: TextEncoder) -> None:
    training = encoder.training
    encoder.eval()  # no dropout: the generator that seeds weights must not be drawn from
    input_ids = torch.zeros(1, 4, dtype=torch.long)
    encoder.leave_out_unused(encoder(input_ids, torch.ones_like(input_ids)))
    encoder.train(training)
