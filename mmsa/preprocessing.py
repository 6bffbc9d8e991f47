"""From a packed sample to a model's input: the numbers, as JSON, never a pickle.

`ImagePreprocessing` belongs to an image encoder; `Preprocessing` adds the settings of the data and
is the content of `preprocessing.json` in an export. This file does not import torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmsa.errors import UserError

PREPROCESSING_NAME = "preprocessing.json"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagePreprocessing(_Strict):
    """How an image becomes an encoder's input; `mean` and `std` are of values in 0..1, RGB.

    A key that is not in the file of an older export has its default, and a default is not written:
    older versions read the files of all encoders that need nothing new.
    """

    image_size_px: int = Field(224, ge=1, description="side of the square input")
    resize_px: int = Field(256, ge=1, description="short side before the centre crop")
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    channels: Literal["RGB", "BGR"] = Field(
        "RGB", exclude_if=lambda order: order == "RGB", description="order at the encoder's input"
    )
    squeezes: bool = Field(
        False,
        exclude_if=lambda squeezes: not squeezes,
        description="its own processor squeezes images to a square of `resize_px`, then crops",
    )

    def at_size(self, image_size_px: int | None) -> ImagePreprocessing:
        """The same for another input side; the short side before the crop is scaled with it."""
        if image_size_px is None or image_size_px == self.image_size_px:
            return self
        resize_px = round(self.resize_px * image_size_px / self.image_size_px)
        return self.model_copy(
            update={"image_size_px": image_size_px, "resize_px": max(image_size_px, resize_px)}
        )


class Preprocessing(_Strict):
    """Both modalities; one that the model does not use has no settings."""

    image: ImagePreprocessing | None = None
    image_view: Literal["crop", "whole"] = "crop"
    packed_mode: Literal["short_side", "original", "square"] = "short_side"
    packed_short_side_px: int | None = Field(
        256, ge=1, description="of the JPEGs in the shards; null: original"
    )
    packed_normalize: tuple[str, ...] = Field((), description="done to the shards' texts")
    packed_quality: int = Field(90, ge=1, le=100, description="JPEG quality in the shards")
    max_tokens: int | None = Field(None, ge=1, description="longer texts are cut; null: no text")
    truncation_side: Literal["right", "left"] = Field(
        "right", exclude_if=lambda side: side == "right", description="where longer texts are cut"
    )

    def to_json(self) -> str:
        """The content of `preprocessing.json`: one key per line, ends with a line end."""
        return self.model_dump_json(indent=1) + "\n"


def read_preprocessing(export: Path) -> Preprocessing:
    """Read `preprocessing.json` of the export directory `export`; `UserError` if it cannot."""
    path = export / PREPROCESSING_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(
            f"{path} cannot be read ({said}); an export (RUN/best) contains this file"
        ) from None
    try:
        return Preprocessing.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "its content"
        raise UserError(
            f"{path} does not contain preprocessing settings: {place}: {first['msg']}; "
            "copy the file from the export again"
        ) from None
