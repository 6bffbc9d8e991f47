"""Bytes that are not an image, or cannot be packed, are refused with a reason."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from posted import saved

from mmsa.data.decoding import image_views
from mmsa.data.decoding.packed_form import BadImage, image_as_packed, pack_image
from mmsa.errors import UserError


def problem(content: bytes, **options: object) -> tuple[str, str]:
    with pytest.raises(BadImage) as caught:
        image_as_packed(content, **{"short_side_px": 256, "quality": 90, **options})
    return caught.value.kind, str(caught.value)


def refusal(content: bytes, **options: object) -> str | None:
    """The reason why `content` is not packed; None if it is."""
    try:
        pack_image(content, **{"short_side_px": 256, "quality": 90, **options})
    except BadImage as error:
        return str(error)
    return None


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("mode", ["short_side", "original"])
def test_truncated_files(form: str, mode: str) -> None:
    content = saved(noise(80, 60), form)
    options = {"mode": mode, "short_side_px": None if mode == "original" else 256}
    kinds = {problem(content[:cut], **options)[0] for cut in (len(content) // 2, 40, 12)}
    assert kinds <= {"truncated", "unreadable"}
    if form != "AVIF":  # its decoder only says that it failed
        assert problem(content[: len(content) // 2], **options) == ("truncated", "truncated image")


def test_what_is_no_image() -> None:
    assert problem(b"") == ("empty", "empty image file")
    assert problem(b"no picture at all")[0] == "unreadable"
    eps = saved(Image.new("RGB", (8, 8)), "EPS")
    assert problem(eps)[0] == "unreadable"
    with_floats = saved(Image.new("F", (8, 8)), "TIFF")
    assert "its mode F has no fixed range" in problem(with_floats)[1]
    assert problem(saved(Image.new("RGB", (70_000, 1)), "PNG")) == (
        "too large",
        "picture of 70000x1 pixels does not fit a JPEG",
    )


ACCEPTED = "accepted are JPEG, PNG, GIF, WebP, BMP, AVIF and TIFF"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (saved(noise(32, 32), "ICO"), "a Windows icon"),
        (saved(noise(32, 32), "ICNS"), "an Apple icon"),
        (saved(noise(32, 32), "JPEG2000"), "a JPEG 2000 image"),
        (saved(noise(32, 32), "EPS"), "a PostScript file"),
        (saved(noise(32, 32), "PDF"), "a PDF"),
        (saved(noise(32, 32), "PCX"), "a PCX image"),
        (saved(noise(32, 32), "DDS"), "a DirectDraw texture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(80), "a HEIC image"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(80), "a HEIF image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1" + bytes(80), "an MP4 video"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(80), "a WAV file"),
        (b"\r\n<!DOCTYPE html>\n<html><head><title>404", "an HTML page"),
        (b"\xef\xbb\xbf<HTML lang=en>", "an HTML page"),
        (b'{"errors": [{"message": "Sorry, that page does not exist."}]}', "JSON"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML file"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        ("no picture at all \u00e9".encode() * 100, "text"),
        (bytes(5000), "nothing but zero bytes"),
        (b"\x99\x98\x97\x96" * 9, "no known image"),
    ],
)
def test_what_is_not_taken_is_named(content: bytes, named: str) -> None:
    kind, message = problem(content)
    assert kind == "unreadable"
    assert message.startswith(f"its content is {named}")
    assert message.endswith(f"; {ACCEPTED}")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF"])
def test_a_damaged_beginning_is_not_called_another_format(form: str) -> None:
    content = saved(noise(32, 32), form)
    for cut in range(12, 40):
        kind, message = problem(content[:cut])
        assert kind in ("truncated", "unreadable")
        assert "accepted are" not in message
        assert "UnidentifiedImageError" not in message


def _jpegs() -> list[bytes]:
    image = noise(61, 47)
    smooth = Image.radial_gradient("L").resize((61, 47))
    plain = saved(image, "JPEG")
    scan = plain.index(b"\xff\xda")
    return [
        plain,
        saved(image, "JPEG", progressive=True),
        saved(smooth, "JPEG", progressive=True),
        saved(image, "JPEG", restart_marker_blocks=2),
        saved(image, "JPEG", subsampling=0),
        saved(smooth, "JPEG", quality=30),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
        plain[:scan] + b"\0\0" + plain[scan:],  # stray bytes: a warning before the missing end
    ]


JPEGS = _jpegs()


def missing_rows(cut: bytes) -> bool:
    """Whether libjpeg's pixels depend on what would follow: it fills missing rows with grey."""
    shown = []
    for more in (b"", bytes(number % 251 for number in range(3000)), b"\x5a\x13" * 900):
        scans = cut[:-2].rstrip(b"\xff")  # the first byte of a mark that was cut off
        with Image.open(io.BytesIO(scans + more + b"\xff\xd9")) as opened:
            shown.append(np.asarray(opened.convert("RGB")))
    return not all(np.array_equal(shown[0], other) for other in shown[1:])


@settings(max_examples=80, deadline=None, derandomize=True)
@given(which=st.integers(0, len(JPEGS) - 1), share=st.floats(0, 1, exclude_max=True))
def test_a_cut_jpeg_whose_end_mark_was_put_back_is_truncated(which: int, share: float) -> None:
    content = JPEGS[which]
    first = Image.open(io.BytesIO(content))
    end = content.index(b"\xff\xd9") if first.format == "MPO" else len(content) - 2
    cut = content[: 2 + int(share * (end - 2))] + b"\xff\xd9"
    for options in ({}, {"short_side_px": 5}, {"mode": "original", "short_side_px": None}):
        found = refusal(cut, **options)
        assert found == "truncated image" or (found is None and not missing_rows(cut))
    if found:
        with pytest.raises(ValueError, match="truncated image"):
            image_views.decode(cut)


@pytest.mark.parametrize("which", range(len(JPEGS)))
def test_a_jpeg_in_half_is_truncated_and_a_whole_one_is_not(which: int) -> None:
    content = JPEGS[which]
    assert refusal(content) is None
    assert image_views.decode(content).shape == (3, 47, 61)
    half = content[: content.index(b"\xff\xd9") // 2]
    assert {refusal(half + end) for end in (b"", b"\xff\xd9", b"\xff\xff\xd9")} == {
        "truncated image"
    }


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
    for form in ("TIFF", "AVIF"):
        assert problem(saved(noise(100, 100), form), max_pixels=9_999)[0] == "too large"
    tiff = bytearray(saved(Image.new("L", (8, 8)), "TIFF"))
    for tag in (256, 257):  # width and height, each a long in an entry of 12 bytes
        at = tiff.index(struct.pack("<H", tag), 8)
        struct.pack_into("<HIi", tiff, at + 2, 4, 1, 60_000)
    assert problem(bytes(tiff))[0] == "too large"
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
        saved(image, "AVIF"),
        saved(image, "TIFF"),
        saved(image, "TIFF", compression="tiff_lzw"),
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
