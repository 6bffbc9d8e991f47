"""Bytes that are not an image, or cannot be packed, are refused with a reason."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from posted import saved

from mmsa.data.decoding.packed_form import BadImage, image_as_packed, pack_image
from mmsa.errors import UserError


def problem(content: bytes, **options: object) -> tuple[str, str]:
    with pytest.raises(BadImage) as caught:
        image_as_packed(content, **{"short_side_px": 256, "quality": 90, **options})
    return caught.value.kind, str(caught.value)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["short_side", "original"])
def test_truncated_files(form: str, mode: str) -> None:
    content = saved(noise(80, 60), form)
    options = {"mode": mode, "short_side_px": None if mode == "original" else 256}
    kinds = {problem(content[:cut], **options)[0] for cut in (len(content) // 2, 40, 12)}
    assert kinds <= {"truncated", "unreadable"}
    if form != "WEBP":  # its decoder only says that it failed
        assert problem(content[: len(content) // 2], **options) == ("truncated", "truncated image")


def test_what_is_no_image() -> None:
    assert problem(b"") == ("empty", "empty image file")
    assert problem(b"no picture at all")[0] == "unreadable"
    eps = saved(Image.new("RGB", (8, 8)), "EPS")
    assert problem(eps)[0] == "unreadable"
    assert problem(saved(Image.new("RGB", (8, 8)), "TIFF"))[0] == "unreadable"
    assert problem(saved(Image.new("RGB", (70_000, 1)), "PNG")) == (
        "too large",
        "picture of 70000x1 pixels does not fit a JPEG",
    )


def test_decompression_bombs_are_not_decoded() -> None:
    row = zlib.compress(bytes(10), 9)

    def png(width: int, height: int) -> bytes:
        head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in ((b"IHDR", head), (b"IDAT", row), (b"IEND", b""))
        )

    kind, message = problem(png(8001, 8000))
    assert kind == "too large"
    assert message == "picture of 8001x8000 = 64,008,000 pixels is over the limit of 64,000,000"
    assert problem(png(60_000, 60_000))[0] == "too large"
    small = saved(Image.new("RGB", (100, 100)), "JPEG")
    assert problem(small, max_pixels=9_999)[0] == "too large"
    assert image_as_packed(small, short_side_px=256, quality=90, max_pixels=10_000)[1:] == (
        100,
        100,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"short_side_px": 0},
        {"short_side_px": None},
        {"quality": 0},
        {"quality": 101},
        {"mode": "round"},
        {"mode": "original"},
        {"max_pixels": 0},
        {"max_pixels": 10**9},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    content = saved(Image.new("RGB", (8, 8)), "JPEG")
    with pytest.raises(UserError):
        image_as_packed(content, **{"short_side_px": 256, "quality": 90, **settings})


def test_fuzzed_images_pack_or_are_refused() -> None:
    rng = random.Random(0)
    image = noise(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    clean = [
        saved(image, "JPEG", exif=exif.tobytes()),
        saved(image, "JPEG", progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image.convert("P"), "PNG"),
        saved(image.convert("RGBA"), "PNG"),
        saved(image, "GIF"),
        saved(image, "WEBP"),
        saved(image.convert("P"), "BMP"),
    ]
    outcomes = {"packed": 0, "refused": 0}
    kinds = set()
    for number in range(800):
        damaged = bytearray(clean[number % len(clean)])
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(min(len(damaged), 2000))
            damaged[place] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            packed = pack_image(bytes(damaged), short_side_px=16, quality=90)
        except BadImage as error:
            kinds.add(error.kind)
            outcomes["refused"] += 1
            continue
        assert min(packed.width, packed.height) <= 16
        assert Image.open(io.BytesIO(packed.jpeg)).size == (packed.width, packed.height)
        outcomes["packed"] += 1
    assert min(outcomes.values()) > 50
    assert kinds <= {"empty", "truncated", "too large", "unreadable"}
