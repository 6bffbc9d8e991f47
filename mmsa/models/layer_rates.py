"""Learning rates that fall towards the input of an encoder (`optim.layer_decay`).

Layer l of L has the share `decay^(L - l)` of its encoder's rate: the last layer and what follows it
have all of it, and what precedes the first layer (embeddings, a stem) has `decay^L`. ELECTRA (Clark
et al., ICLR 2020, appendix B) and BEiT (Bao et al., ICLR 2022, appendix) count the classifier as a
further layer of the same rate; here it has a rate of its own (`optim.head_lr`).
"""

from __future__ import annotations

from collections.abc import Iterator

from mmsa.errors import UserError
from mmsa.models.encoders import IMAGE_SECTION, TEXT_SECTION, Encoder
from mmsa.models.model import SentimentModel


def require_known_layers(model: SentimentModel, decay: float) -> None:
    """Raise `UserError` where `decay` is below 1 and the layers of a trained encoder are not known.

    All of such an encoder would have one learning rate.
    """
    encoders = {TEXT_SECTION: model.text_encoder, IMAGE_SECTION: model.image_encoder}
    unknown = [
        section
        for section, encoder in encoders.items()
        if encoder is not None
        and not encoder.layers
        and any(parameter.requires_grad for parameter in encoder.body.parameters())
    ]
    if decay < 1 and unknown:
        raise UserError(
            f"optim.layer_decay={decay}, but the layers of {' and '.join(unknown)} are not known; "
            "set it to 1"
        )


def layer_shares(model: SentimentModel, decay: float) -> dict[str, float]:
    """The share of its encoder's learning rate for each parameter of the encoders' bodies, by its
    name in the model. All are 1 where `decay` is."""
    shares = {}
    for prefix, encoder in (
        ("text_encoder.body", model.text_encoder),
        ("image_encoder.body", model.image_encoder),
    ):
        if encoder is not None:
            for name, layers_above in _layers_above(encoder):
                shares[f"{prefix}.{name}"] = decay**layers_above
    return shares


def _layers_above(encoder: Encoder) -> Iterator[tuple[str, int]]:
    """(name in the body, number of layers that follow) of each parameter of the body.

    A parameter outside the layers counts with the one that is defined before it: bodies define
    their modules in the order of the forward pass.
    """
    number_of = {
        id(parameter): number
        for number, layer in enumerate(encoder.layers, start=1)
        for module in layer
        for parameter in module.parameters()
    }
    reached = 0  # the first layer has not begun
    for name, parameter in encoder.body.named_parameters():
        reached = number_of.get(id(parameter), reached)
        yield name, len(encoder.layers) - reached
