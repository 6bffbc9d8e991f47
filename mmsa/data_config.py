"""The section `data` of the configuration: shards, their order, the views of images.

`mmsa/config.py` has the other sections, and is where all are imported from.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mmsa.config_types import Section, Size
from mmsa.foundation.overrides import CREDENTIAL
from mmsa.foundation.urls import is_url, url_problem


class ModalityDropoutConfig(Section):
    """Training without one modality of a sample now and then, so that it may be missing later."""

    text: float = Field(0.0, ge=0, lt=1, description="probability of training without the text")
    image: float = Field(0.0, ge=0, lt=1, description="the same for the image")

    @model_validator(mode="after")
    def _one_stays(self) -> ModalityDropoutConfig:
        if self.text + self.image >= 1:
            raise ValueError("text and image together must be below 1: a sample never loses both")
        return self


class DataConfig(Section):
    shards: str | None = Field(None, description="directory or URL made by `python -m shards pack`")
    cache: str | None = Field(
        None, description="folder on this node for whole shards of `data.shards`, a URL or a path"
    )
    cache_limit: Size | None = Field(None, description="bytes, as in 200GB; null: all of the disk")
    classes: list[str] | dict[str, list[str]] | None = Field(
        None, description="kept classes in order, or new name -> merged classes; null keeps all"
    )
    window_shards: int = Field(16, ge=1, description="shards whose samples are permuted together")
    groups: int = Field(
        1, ge=1, description="of shards; a global batch takes as many samples from each"
    )
    read_ahead: bool = Field(
        False, description="read whole shards of the next window into the page cache"
    )
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        2, description="loader processes per rank; auto: by the cores that a rank has, with a GPU"
    )
    timeout_s: float = Field(300, ge=0, description="for a batch of a loader process; 0: no limit")
    max_tokens: int = Field(128, ge=4, description="longer texts are cut, special tokens kept")
    image_view: Literal["crop", "whole"] = Field(
        "crop", description="crop: a square cut from the image; whole: all of it, squeezed square"
    )
    augment: bool = Field(True, description="random crop and flip of training images")
    flip_probability: float = Field(0.5, ge=0, le=1, description="of a training image, mirrored")
    min_crop_scale: float = Field(1.0, gt=0, le=1, description="smallest random crop, of the side")
    auto_augment: Literal["none", "rand_augment", "trivial_augment"] = Field(
        "none", description="torchvision's random policy for training images"
    )
    auto_augment_operations: int = Field(2, ge=1, description="of rand_augment, for each image")
    auto_augment_magnitude: int = Field(9, ge=0, le=30, description="of rand_augment")
    modality_dropout: ModalityDropoutConfig = Field(
        ModalityDropoutConfig(), description="probabilities of masking one modality of a sample"
    )
    drop_last: bool = Field(True, description="leave out the last incomplete step of an epoch")
    bucket_by_length: bool = Field(True, description="deal a step's samples by text length")

    @field_validator("shards")
    @classmethod
    def _no_credential(cls, value: str | None) -> str | None:
        problem = url_problem(value) if value is not None and is_url(value) else ""
        if problem:
            raise PydanticCustomError(CREDENTIAL, "{problem}", {"problem": problem})
        return value
