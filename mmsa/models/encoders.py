"""What text and image encoders have in common: a body, a projection, and what of them is trained.

Shapes: B batch, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsa.errors import UserError, first_line
from mmsa.models.blank import is_blank
from mmsa.models.depthwise import leave_out_of_cpu_autocast
from mmsa.models.eval_mode import eval_mode
from mmsa.models.fusion.sequences import (
    Features,
    FeatureSequence,
    position_rows,
    rows_of_trial,
)
from mmsa.models.weights import State, export_state, load_strictly
from mmsa.preprocessing import ImagePreprocessing

Trained = Literal["full", "last_n", "frozen"]

TEXT_SECTION = "model.text_encoder"
IMAGE_SECTION = "model.image_encoder"
FRESH = "fresh (seeded)"  # the `source` of weights that were not loaded


class Encoder(nn.Module):
    """`body`, the network of one modality, followed by an optional linear projection.

    Attributes: `width` is D of the output; `source` describes where the weights came from;
    `architecture` is what `config` must contain to build the same body again, None where the name
    says it all; `layers` are the layers of the body from the input on, each of one or more modules;
    `trained` are the modules of the body that are trained; `unused` names parameters of them that
    the features do not depend on (they are not trained: distributed training would wait for their
    gradients); `gives_sequences`: whether it gives a `FeatureSequence`, not one row per input.
    """

    def __init__(self, body: nn.Module, body_width: int, projection: int | None) -> None:
        super().__init__()
        self.body = body
        self.projection = nn.Linear(body_width, projection) if projection else None
        self.width = projection or body_width
        self.source = FRESH
        self.architecture: dict[str, Any] | None = None
        self.layers: tuple[tuple[nn.Module, ...], ...] = ()
        self.unused: tuple[str, ...] = ()
        self.gives_sequences = False
        self.trained: list[nn.Module] = [body]
        self._frozen_statistics = False

    def freeze_statistics(self) -> None:
        """Make BatchNorm layers normalise by the statistics they came with, in training too.

        Their scale and shift are still trained (`model.image_encoder.batch_norm: frozen`).
        """
        self._frozen_statistics = True
        self.train(self.training)

    def train_only(self, parts: Sequence[nn.Module]) -> None:
        """Train only `parts` of the body; the projection is always trained."""
        self.trained = list(parts)
        self.body.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """As in `nn.Module`, but frozen parts stay in eval mode (dropout off, statistics fixed)."""
        super().train(mode)
        self.body.eval()
        for part in self.trained:
            part.train(mode)
        if self._frozen_statistics:
            for module in self.body.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _body_gradient(self) -> torch.set_grad_enabled:
        # A frozen body need not keep activations.
        return torch.set_grad_enabled(torch.is_grad_enabled() and bool(self.trained))

    def _project(self, features: Tensor) -> Tensor:
        return features if self.projection is None else self.projection(features)

    def _begin_sequences(self, named: str, *inputs: Tensor) -> None:
        """Give sequences from now on. `inputs` are one small input; `named` is for messages.

        The width and the unused parameters are found again: rows need other parts of a body than
        its pooled output (no pooler). Raises `UserError` where the body has no rows.
        """
        self.gives_sequences = True
        for name in self.unused:
            self.body.get_parameter(name).requires_grad_(True)
        self.unused = ()
        projection, self.projection = self.projection, None
        with torch.no_grad(), eval_mode(self):
            width = rows_of_trial(self, named, inputs).shape[-1]
        self.projection = projection
        if projection is None:
            self.width = width
        elif projection.in_features != width:
            raise UserError(
                f"{named}: its rows have {width} features and its pooled output "
                f"{projection.in_features}, for which the projection was made; set projection: "
                "null, the head has projections of its own"
            )
        leave_out_unused(self, *inputs)

    def leave_out_unused(self, features: Tensor) -> None:
        """Stop training what `features`, made in eval mode, do not depend on; fills `unused`."""
        named = [(name, p) for name, p in self.body.named_parameters() if p.requires_grad]
        if not named:
            return
        gradients = torch.autograd.grad(
            features.float().sum(), [parameter for _, parameter in named], allow_unused=True
        )
        idle = [pair for pair, gradient in zip(named, gradients, strict=True) if gradient is None]
        for _, parameter in idle:
            parameter.requires_grad_(False)
        self.unused = tuple(name for name, _ in idle)

    def load_export(self, path: Path, part: str) -> None:
        """Load `part` of the export `path`: its body strictly, its projection if it fits.

        Raises `UserError` where the body does not fit.
        """
        state = export_state(path, part)
        kind = part.replace("_", " ")
        body = {key.removeprefix("body."): v for key, v in state.items() if key.startswith("body.")}
        load_strictly(self.body, body, where=f"the weights of {kind} in {path}")
        self.source = f"{kind} of export {path}"
        if self.projection is not None:
            self.source += self._load_projection(state)

    def _load_projection(self, state: State) -> str:
        assert self.projection is not None
        own = {name: state.get(f"projection.{name}") for name in ("weight", "bias")}
        found = {name: value for name, value in own.items() if value is not None}
        if len(found) == 2 and found["weight"].shape == self.projection.weight.shape:
            self.projection.load_state_dict(found)
            return " (with its projection)"
        return " (projection fresh)"


def leave_out_unused(encoder: Encoder, *inputs: torch.Tensor) -> None:
    """Stop training what the features of `inputs` do not depend on.

    Raises `UserError` where the body does not take them or gives no gradients.
    """
    if is_blank():
        return
    try:
        with eval_mode(encoder):
            features: Features = encoder(*inputs)
            rows = features.rows if isinstance(features, FeatureSequence) else features
            encoder.leave_out_unused(rows)
    except Exception as error:  # the code of a body may raise anything
        raise UserError(
            f"the encoder {type(encoder.body).__name__} cannot be used: one small input ends in "
            f"{first_line(error, with_type=True)}. Use another encoder"
        ) from None


class ImageEncoder(Encoder):
    """Images to features, with the encoder's own input size and normalisation (`preprocessing`)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        body: nn.Module,
        *,
        body_width: int,
        projection: int | None,
        preprocessing: ImagePreprocessing,
    ) -> None:
        super().__init__(body, body_width, projection)
        self.preprocessing = preprocessing
        # In units of 0..255, so that images need no division by 255 first. Not persistent: an
        # export has the numbers in preprocessing.json.
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("mean", (mean * 255).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", (std * 255).view(1, 3, 1, 1), persistent=False)
        self.memory_format = memory_format_for(body)
        lay_out(body, self.memory_format)
        leave_out_of_cpu_autocast(body)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, 3, S, S) -> float32, mean 0 and deviation 1 by channel, in its order.

        In the body's memory format, whatever that of the images: sums depend on it.
        """
        images = images.contiguous(memory_format=self.memory_format)
        normalised = (images.float() - self.mean) / self.std
        return normalised.flip(1) if self.preprocessing.channels == "BGR" else normalised

    def begin_sequences(self, sequence: Callable[[nn.Module, Tensor], Tensor], named: str) -> None:
        """Give the rows of `sequence(body, normalised images)` from now on: that of `ImageFamily`.

        It takes the place of the body's own forward, inside its call: whatever an engine does
        around that call (ZeRO-3 gathers parameters) still happens. Raises `UserError` where there
        is no sequence; `named` is for the message.
        """
        self.body.forward = partial(sequence, self.body)
        side = self.preprocessing.image_size_px
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.mean.device)
        self._begin_sequences(named, images)

    def forward(self, images: Tensor) -> Features:
        """uint8 (B, 3, S, S) -> features (B, D), or their sequence (B, P, D)."""
        with self._body_gradient():
            features = self.body(self.normalise(images))
        if not self.gives_sequences:
            return self._project(features)
        rows = self._project(position_rows(features))
        return FeatureSequence(rows, rows.new_ones(rows.shape[:2], dtype=torch.bool))


def memory_format_for(body: nn.Module) -> torch.memory_format:
    """Channels last for a convolutional network, whose kernels are faster that way.

    A transformer's single convolution, over patches, gains nothing. A network that oneDNN cannot
    train in channels last stays contiguous.
    """
    convolutions = [module for module in body.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < 2 or any(map(_overruns_in_channels_last, convolutions)):
        return torch.contiguous_format
    return torch.channels_last


def _overruns_in_channels_last(convolution: nn.Conv2d) -> bool:
    """Whether oneDNN's kernel writes past its buffer in this convolution's backward pass.

    A strided 1x1 convolution over fewer channels than the kernel's block, 8 with AVX2 and 16 with
    AVX-512, corrupts memory in channels last: a crash, a hang or wrong gradients
    (uxlfoundation/oneDNN#6035; torch 2.15; with 16 channels and more, none was found). The same
    answer on each CPU. Networks in use are wider; tiny ones in tests are not.
    """
    strided = max(convolution.stride) > 1
    narrow = convolution.in_channels // convolution.groups < 16
    return convolution.kernel_size == (1, 1) and strided and narrow


def lay_out(body: nn.Module, memory_format: torch.memory_format) -> None:
    """Convert the convolutions' weights to `memory_format`, in place; names and values stay.

    Where they stay contiguous (under DeepSpeed) the images' format decides alone, at the cost of a
    copy of the weights at each call: 3 % of a step of ResNet-50.
    """
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            # 1x1 weights have the same layout in both formats and `contiguous` would leave their
            # strides as they are; DDP compares them with the gradients' strides.
            weight = module.weight.data
            laid_out = torch.empty_like(weight, memory_format=memory_format)
            module.weight.data = laid_out.copy_(weight)


def trained_parts(
    train: Trained,
    last_n: int,
    *,
    body: nn.Module,
    layers: Sequence[nn.Module | Sequence[nn.Module]],
    above: Sequence[nn.Module] = (),
    section: str,
) -> list[nn.Module]:
    """The trained parts of `body`: all, none, or the last of `layers` with what is `above` them.

    `layers` are in the order of the forward pass; `above` (final norms) takes the output of the
    last layer. `section` ("model.text_encoder") is for the `UserError` raised where `last_n` is not
    between 1 and their number.
    """
    if train == "full":
        return [body]
    if train == "frozen":
        return []
    if not 1 <= last_n <= len(layers):
        raise UserError(
            f"{section}.last_n={last_n} with {section}.train=last_n: this encoder has "
            f"{len(layers)} layers that can be trained apart; give 1 to {len(layers)}, or use "
            "train: frozen or train: full"
        )
    parts: list[nn.Module] = []
    for layer in layers[len(layers) - last_n :]:
        parts += [layer] if isinstance(layer, nn.Module) else list(layer)
    return [*parts, *above]
