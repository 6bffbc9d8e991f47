"""Settings of a packing, read from the command line and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from mmsa.data.decoding.limits import LARGEST_MAX_PIXELS, MAX_PIXELS
from mmsa.errors import UserError
from mmsa.foundation.sizes import bytes_of


@dataclass(frozen=True)
class ShardSize:
    """Limits of a shard in samples and in bytes of its tar; without both the set's size decides."""

    samples: int | None = None
    num_bytes: int | None = None

    def problems(self) -> list[str]:
        """What is wrong with it; empty where nothing is."""
        found = []
        if self.samples is not None and self.samples < 1:
            found.append(f"--samples-per-shard {self.samples} must be at least 1")
        if self.num_bytes is not None and self.num_bytes < 1:
            found.append(f"--shard-size {self.num_bytes} must be at least 1 byte")
        return found

    def facts(self) -> dict[str, Any]:
        """Its entries in the manifest."""
        found: dict[str, Any] = {"samples_per_shard": self.samples or "auto"}
        if self.num_bytes is not None:
            found["shard_bytes"] = self.num_bytes
        return found


@dataclass(frozen=True)
class ImageForm:
    """The packed form of images: see `parse_image_form`. `side_px` is None for `original`."""

    mode: Literal["short_side", "original", "square"] = "short_side"
    side_px: int | None = 256
    quality: int = 90
    max_pixels: int = MAX_PIXELS

    def problems(self) -> list[str]:
        """What is wrong with it; empty where nothing is."""
        found = []
        if self.side_px is not None and self.side_px < 16:
            found.append(f"--image-short-side {self.side_px} must be at least 16 pixels")
        if not 1 <= self.quality <= 95:
            found.append(f"--image-quality {self.quality} must be from 1 to 95")
        if not 1 <= self.max_pixels <= LARGEST_MAX_PIXELS:
            found.append(f"--max-pixels {self.max_pixels} must be from 1 to {LARGEST_MAX_PIXELS}")
        return found

    def facts(self) -> dict[str, Any]:
        """Its entries in the manifest."""
        return {
            "image_mode": self.mode,
            "image_short_side_px": self.side_px,
            "image_quality": self.quality,
            "image_max_pixels": self.max_pixels,
        }


@dataclass(frozen=True)
class PackSettings:
    """How to split and pack a raw data set.

    Without `ratios` the protocol decides them. Without `protocol` it is `column` where the data has
    a column of splits, else `clean`. `allow_dropped` packs a set of which more than half is
    rejected for one reason.
    """

    ratios: dict[str, int] | None = None
    protocol: str | None = "random"
    seed: int = 0
    allow_missing: bool = False
    allow_dropped: bool = False
    image: ImageForm = ImageForm()
    size: ShardSize = ShardSize()

    def problems(self) -> list[str]:
        """What is wrong with these settings; empty where nothing is."""
        found = [f"--seed {self.seed} must be at least 0"] if self.seed < 0 else []
        return found + self.image.problems() + self.size.problems()


def parse_image_form(text: str, quality: int, max_pixels: int) -> ImageForm:
    """Read `256`, `original` or `square:224`; `UserError` for anything else."""
    if text == "original":
        return ImageForm("original", None, quality, max_pixels)
    square = text.startswith("square:")
    number = text.removeprefix("square:")
    if not re.fullmatch(r"[0-9]{1,6}", number):
        raise UserError(
            f"--image-short-side {text} must be a number of pixels, original, or square:PIXELS"
        )
    return ImageForm("square" if square else "short_side", int(number), quality, max_pixels)


def parse_size(text: str) -> int:
    """Bytes of "64MB", "1.5GiB" or "500kB"; `UserError` for anything else or nothing."""
    size = bytes_of(text)
    if isinstance(size, str) or size < 1 or not text.strip().endswith("B"):  # 64 may mean samples
        raise UserError(f"--shard-size {text} must be a number with a unit, as in 64MB or 1GiB")
    return size


def parse_part(text: str) -> tuple[int, int]:
    """Read "3/8" as part 3 of 8, counted from 1; `UserError` for anything else."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--part {text} must be I/N with I from 1 to N, as in 3/8")
    return part, parts


def canonical_json(content: Any) -> str:
    """The same text for equal contents, whatever the order of keys."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
