"""The packed form: every posted image type and mode; normalised texts."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from posted import saved

from mmsa.data.decoding.packed_form import (
    BadImage,
    BadText,
    image_as_packed,
    pack_image,
    text_as_packed,
)
from mmsa.data.decoding.posted_images import size_as_shown

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128,) * 3


def shown(content: bytes, **options: object) -> Image.Image:
    """What the packed form of `content` shows."""
    settings = {"short_side_px": 256, "quality": 95, **options}
    jpeg, width, height = image_as_packed(content, **settings)
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert image.size == (width, height)
    assert "progressive" not in image.info
    assert not image.getexif()
    return image


def near(image: Image.Image, place: tuple[int, int], colour: tuple[int, ...]) -> bool:
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= 12 for a, b in zip(found, colour, strict=True))


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("LA", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "GIF", {}),
        ("L", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "BMP", {}),
        ("P", "BMP", {}),
        ("1", "BMP", {}),
        ("RGB", "AVIF", {}),
        ("RGBA", "AVIF", {}),
        ("L", "AVIF", {}),
        ("RGB", "TIFF", {}),
        ("RGB", "TIFF", {"compression": "jpeg"}),
        ("RGB", "TIFF", {"compression": "tiff_lzw", "big_tiff": True}),
        ("CMYK", "TIFF", {}),
        ("RGBA", "TIFF", {}),
        ("LAB", "TIFF", {}),
        ("I;16", "TIFF", {}),
        ("P", "TIFF", {}),
        ("1", "TIFF", {"compression": "group4"}),
    ],
)
def test_every_type_and_mode(mode: str, form: str, options: dict[str, object]) -> None:
    # The left half white, the right half black: the same in every mode.
    image = Image.new("L", (64, 48), 0)
    image.paste(255, (0, 0, 32, 48))
    if mode == "I;16":
        grey = np.asarray(image).astype(np.uint16) * 257
        converted = Image.fromarray(grey)
    elif mode == "LAB":
        neutral = Image.new("L", image.size, 128)
        converted = Image.merge("LAB", (image, neutral, neutral))
    else:
        converted = image.convert("RGB").convert(mode)
    content = saved(converted, form, **options)
    packed = shown(content)
    assert packed.size == (64, 48)
    assert near(packed, (8, 24), WHITE)
    assert near(packed, (56, 24), (0, 0, 0))
    assert pack_image(content, short_side_px=256, quality=90).source_format == form


def test_sixteen_bits_keep_their_shade() -> None:
    content = saved(Image.fromarray(np.full((20, 30), 128 * 257, dtype=np.uint16)), "PNG")
    assert near(shown(content), (5, 5), GREY)


def test_sixteen_bits_of_colour() -> None:
    # Pillow writes none: one row of 8 pixels, RGB of 16 bits, half red.
    row = b"\0" + struct.pack(">3H", 0x8000, 0, 0) * 8
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 1, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )
    assert near(shown(b"\x89PNG\r\n\x1a\n" + chunks), (3, 0), (128, 0, 0))


def test_transparent_parts_lie_on_white() -> None:
    layer = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    layer.paste((0, 0, 255, 255), (20, 0, 40, 40))
    for form in ("PNG", "WEBP", "GIF", "AVIF", "TIFF"):
        packed = shown(saved(layer, form))
        assert near(packed, (5, 20), WHITE)
        assert near(packed, (35, 20), BLUE)
    half = shown(saved(Image.new("RGBA", (16, 16), (0, 0, 0, 127)), "PNG"))
    assert near(half, (8, 8), GREY)


def test_one_colour_named_transparent() -> None:
    for mode, colour in (("RGB", (10, 20, 30)), ("L", 7), ("I;16", 7)):
        content = saved(Image.new(mode, (16, 16), colour), "PNG", transparency=colour)
        assert near(shown(content), (8, 8), WHITE)
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert near(shown(saved(palette, "PNG", transparency=0)), (8, 8), WHITE)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "AVIF", "TIFF"])
def test_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in (GREEN, RED, BLUE)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert near(shown(content), (16, 12), GREEN)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_orientation_is_applied(form: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 48), WHITE)
    upright.paste(RED, (0, 0, 32, 24))  # upper left
    upright.paste(BLUE, (0, 24, 32, 48))  # lower left
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(stored, form, exif=exif.tobytes(), quality=95)
    packed = shown(content)
    assert packed.size == (64, 48)
    with Image.open(io.BytesIO(content)) as opened:
        assert size_as_shown(opened) == (64, 48)
    assert near(packed, (10, 8), RED)
    assert near(packed, (10, 40), BLUE)
    assert near(packed, (54, 24), WHITE)


@pytest.mark.filterwarnings("error")  # nor is the user told of it, once an image
def test_a_damaged_exif_leaves_the_image_as_it_lies() -> None:
    content = saved(Image.new("RGB", (40, 20), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert shown(content).size == (40, 20)


def test_sizes() -> None:
    wide = saved(Image.new("RGB", (599, 454)), "JPEG")
    assert image_as_packed(wide, short_side_px=256, quality=90)[1:] == (338, 256)
    assert image_as_packed(wide, short_side_px=600, quality=90)[1:] == (599, 454)
    assert image_as_packed(wide, short_side_px=224, quality=90, mode="square")[1:] == (224, 224)
    small = saved(Image.new("RGB", (48, 344)), "JPEG")
    assert image_as_packed(small, short_side_px=256, quality=90)[1:] == (48, 344)
    assert image_as_packed(small, short_side_px=224, quality=90, mode="square")[1:] == (224, 224)
    huge = saved(Image.new("RGB", (4001, 3001)), "JPEG")  # decoded smaller on the way
    assert image_as_packed(huge, short_side_px=64, quality=90)[1:] == (85, 64)
    assert image_as_packed(huge, short_side_px=256, quality=90)[1:] == (341, 256)


def test_square_shows_the_centre() -> None:
    image = Image.new("RGB", (90, 30), WHITE)
    image.paste(RED, (30, 0, 60, 30))
    packed = shown(saved(image, "PNG"), short_side_px=64, mode="square")
    assert near(packed, (2, 32), RED)
    assert near(packed, (61, 32), RED)


def test_a_jpeg_decoded_smaller_looks_like_one_decoded_whole() -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    content = saved(coarse.resize((1200, 960), Image.Resampling.BICUBIC), "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content)).resize((160, 128), Image.Resampling.BICUBIC)
    packed = pack_image(content, short_side_px=128, quality=90).pixels
    error = np.mean((packed.astype(float) - np.asarray(whole, dtype=float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 40  # dB


def test_original_keeps_plain_jpegs_and_converts_the_rest() -> None:
    settings = {"short_side_px": None, "quality": 90, "mode": "original"}
    plain = saved(Image.new("RGB", (700, 500), RED), "JPEG", quality=71, progressive=True)
    packed = pack_image(plain, **settings)
    assert packed.untouched
    assert packed.jpeg == plain
    assert (packed.width, packed.height) == (700, 500)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(Image.new("RGB", (700, 500), RED), "JPEG", exif=exif.tobytes())
    for content, size in (
        (turned, (500, 700)),
        (saved(Image.new("CMYK", (700, 500)), "JPEG"), (700, 500)),
        (saved(Image.new("RGB", (700, 500)), "PNG"), (700, 500)),
    ):
        packed = pack_image(content, **settings)
        assert not packed.untouched
        assert (packed.width, packed.height) == size
        assert Image.open(io.BytesIO(packed.jpeg)).size == size
        assert packed.to_pillow().size == size


def test_the_mpo_of_a_phone_is_a_jpeg() -> None:
    shots = [Image.new("RGB", (700, 500), colour) for colour in (RED, BLUE)]
    content = saved(shots[0], "MPO", save_all=True, append_images=shots[1:])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    packed = pack_image(content, short_side_px=None, quality=90, mode="original")
    assert (packed.untouched, packed.source_format) == (True, "JPEG")
    assert packed.jpeg == content
    assert near(shown(content), (100, 100), RED)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_png_with_large_texts_opens(compressed: bool) -> None:
    """Pillow refuses texts of more than 1 MB unpacked, and more than 64 MB together."""
    image = Image.new("RGB", (40, 20), RED)
    plain = saved(image, "PNG")
    texts = PngInfo()
    if compressed:
        texts.add_text("parameters", "x" * 2_000_000, zip=True)
        texts.add_itxt("notes", "y" * 2_000_000, zip=True)
    else:
        texts.add_text("parameters", "x" * 70_000_000)
    texts.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6" />')
    content = saved(image, "PNG", pnginfo=texts)
    with pytest.raises(ValueError, match="MAX_TEXT"):
        Image.open(io.BytesIO(content)).load()
    assert shown(content).size == (20, 40)
    profile = saved(image, "PNG", icc_profile=b"z" * 2_000_000)
    assert image_as_packed(profile, short_side_px=9, quality=90) == image_as_packed(
        plain, short_side_px=9, quality=90
    )
    damaged = content.replace(b"IDAT", b"IDAX")
    with pytest.raises(BadImage):
        shown(damaged)


def test_texts_are_left_alone_unless_asked() -> None:
    text = "RT @some_one:  see\nhttp://t.co/Ab1  www.x.org mail@host.org #tag"
    assert text_as_packed(f" {text}\r\n") == text
    assert text_as_packed(text, ["urls"]) == ("RT @some_one:  see\nhttp  http mail@host.org #tag")
    assert text_as_packed(text, ["mentions"]) == (
        "RT @user:  see\nhttp://t.co/Ab1  www.x.org mail@host.org #tag"
    )
    assert text_as_packed(text, ["whitespace", "urls", "mentions"]) == (
        "RT @user: see http http mail@host.org #tag"
    )


@pytest.mark.parametrize("text", ["", "  \t\r\n", "\u3000"])
def test_a_text_of_blanks_is_refused(text: str) -> None:
    with pytest.raises(BadText, match="empty text"):
        text_as_packed(text, ["whitespace"])
