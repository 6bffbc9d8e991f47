"""Image encoders of torchvision, by their names there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from mmsa.config import ImageEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import torchvision_state
from mmsa.models.encoder_families import EncoderSettings, ImageFamily, Network, register_encoder
from mmsa.models.encoders import IMAGE_SECTION, ImageEncoder
from mmsa.models.hf_config import HF_PREFIX
from mmsa.models.weights import State
from mmsa.preprocessing import ImagePreprocessing


class TorchvisionFamily(ImageFamily):
    """torchvision's models of one kind. A subclass says how they are taken apart."""

    Settings: ClassVar[type[EncoderSettings] | None] = None  # the sizes are in the name
    finds_unused = False  # all parameters are used
    is_foreign = False
    classifier: ClassVar[tuple[str, ...]]  # how the classifier's tensors begin in a state dict

    def take_apart(self, body: Any) -> tuple[Sequence[Any], Sequence[nn.Module]]:
        """Remove the classifier of `body`; returns its stages and the norms above them."""
        raise NotImplementedError

    def names(self) -> Sequence[str]:
        from torchvision.models import list_models

        return [name for name in list_models() if name.startswith(self.prefix)]

    def build(
        self, config: ImageEncoderConfig, preprocessing: ImagePreprocessing | None
    ) -> ImageEncoder:
        if config.config is not None:
            raise UserError(
                f"{IMAGE_SECTION}.config is for {HF_PREFIX}NAME; torchvision's {config.name} has "
                "its sizes in its name. Take the key out"
            )
        return super().build(config, preprocessing)

    def preprocessing(self, name: str, settings: Any) -> ImagePreprocessing:
        transforms = _weights(name).transforms()
        return ImagePreprocessing(
            image_size_px=transforms.crop_size[0],
            resize_px=transforms.resize_size[0],
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
        )

    def options(self, image_size_px: int) -> dict[str, Any]:
        """Further arguments of torchvision's builder."""
        return {}

    def network(self, name: str, settings: Any, image_size_px: int) -> Network:
        from torchvision.models import get_model

        try:
            body = get_model(name, weights=None, **self.options(image_size_px))
        except (ValueError, AssertionError) as error:
            raise UserError(
                f"{name} does not take images of {image_size_px} px: {error}; set "
                f"{IMAGE_SECTION}.image_size_px to a multiple of its patch (16, 32 or 14), or to "
                "null"
            ) from None
        width = _classifier_width(body)
        stages, above = self.take_apart(body)
        return Network(body, width, stages, above)

    def pretrained(self, name: str) -> tuple[State, str]:
        return torchvision_state(_weights(name)), f"torchvision {_weights(name)}"

    def body_state(self, encoder: Any, name: str, state: State) -> State:
        return {key: value for key, value in state.items() if not key.startswith(self.classifier)}


@register_encoder("image", "resnet")
class ResNets(TorchvisionFamily):
    classifier = ("fc.",)

    def take_apart(self, body: Any) -> tuple[Sequence[Any], Sequence[nn.Module]]:
        body.fc = nn.Identity()
        return [body.layer1, body.layer2, body.layer3, body.layer4], []

    def sequence(self, body: Any, images: Tensor) -> Tensor:
        found = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        for stage in (body.layer1, body.layer2, body.layer3, body.layer4):
            found = stage(found)
        return cast(Tensor, found)


@register_encoder("image", "mobilenet_v2")
class MobileNets(TorchvisionFamily):
    classifier = ("classifier.",)

    def take_apart(self, body: Any) -> tuple[Sequence[Any], Sequence[nn.Module]]:
        body.classifier = nn.Identity()
        return list(body.features), []

    def sequence(self, body: Any, images: Tensor) -> Tensor:
        return cast(Tensor, body.features(images))


@register_encoder("image", "vit_")
class VisionTransformers(TorchvisionFamily):
    classifier = ("heads.",)

    def options(self, image_size_px: int) -> dict[str, Any]:
        return {"image_size": image_size_px}

    def take_apart(self, body: Any) -> tuple[Sequence[Any], Sequence[nn.Module]]:
        body.heads = nn.Identity()
        return list(body.encoder.layers), [body.encoder.ln]

    def sequence(self, body: Any, images: Tensor) -> Tensor:
        """The class token, then the patches."""
        patches = body._process_input(images)
        first = body.class_token.expand(len(images), -1, -1)
        return cast(Tensor, body.encoder(torch.cat([first, patches], dim=1)))

    def body_state(self, encoder: Any, name: str, state: State) -> State:
        """With position embeddings learned at another input size interpolated to this one."""
        from torchvision.models.vision_transformer import interpolate_embeddings

        own = dict(super().body_state(encoder, name, state))
        side: int = encoder.preprocessing.image_size_px
        interpolated: State = interpolate_embeddings(side, encoder.body.patch_size, own)
        return interpolated


@register_encoder("image", "convnext_")
class ConvNeXts(TorchvisionFamily):
    classifier = ("classifier.2.",)

    def take_apart(self, body: Any) -> tuple[Sequence[Any], Sequence[nn.Module]]:
        body.classifier[2] = nn.Identity()  # its norm and flattening stay
        # A stem or a downsampling, then blocks, four times.
        children = list(body.features)
        stages = [children[at : at + 2] for at in range(0, len(children), 2)]
        return stages, [body.classifier[0]]

    def sequence(self, body: Any, images: Tensor) -> Tensor:
        """With the norm that the pooled features have, at each position."""
        return cast(Tensor, body.classifier[0](body.features(images)))


def _weights(name: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(name).DEFAULT


def _classifier_width(model: nn.Module) -> int:
    """The number of features that the classifier, the last linear layer, takes."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1].in_features
