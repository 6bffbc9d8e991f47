"""What a file is, by its first bytes: the images that are taken, and the files that are saved under
an image's name by mistake. For messages; nothing is opened.
"""

from __future__ import annotations

Content = bytes | memoryview

# Pillow's names of the formats that are taken, and how people write them. All others are refused:
# for EPS, Pillow would run an external program.
ACCEPTED = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "GIF": "GIF",
    "WEBP": "WebP",
    "BMP": "BMP",
    "AVIF": "AVIF",
    "TIFF": "TIFF",
}
ACCEPTED_NAMES = f"{', '.join([*ACCEPTED.values()][:-1])} and {[*ACCEPTED.values()][-1]}"

_READ = 1024  # bytes that are looked at

_ACCEPTED_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # with 64-bit offsets
    (b"MM\0+", "TIFF"),
)
_OTHER_STARTS = (
    (b"\0\0\1\0", "a Windows icon"),
    (b"\0\0\2\0", "a Windows cursor or a Targa image"),
    (b"icns", "an Apple icon"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"II\xbc", "a JPEG XR image"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"%PDF", "a PDF"),
    (b"DDS ", "a DirectDraw texture"),
    (b"qoif", "a QOI image"),
    (b"\x0a\x05\x01", "a PCX image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"PK\3\4", "a ZIP archive"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\0", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"\x1a\x45\xdf\xa3", "a WebM or Matroska video"),
    (b"ID3", "an MP3 file"),
    (b"OggS", "an Ogg file"),
    (b"\x7fELF", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull gets it)"),
)
# The brand of an ISO media file (HEIC, AVIF, MP4, ...), at byte 8.
_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "a HEIC image",
    b"heix": "a HEIC image",
    b"heim": "a HEIC image",
    b"heis": "a HEIC image",
    b"hevc": "a HEIC image",
    b"hevx": "a HEIC image",
    b"mif1": "a HEIF image",
    b"msf1": "a HEIF image",
    b"qt  ": "a QuickTime video",
    b"crx ": "a Canon raw image",
}
_RIFF = {b"WEBP": "WEBP", b"AVI ": "an AVI video", b"WAVE": "a WAV file"}


def accepted_format(content: Content) -> str | None:
    """The key of `ACCEPTED` whose files begin like `content`; None for any other file."""
    found = _kind(bytes(content[:_READ]))
    return found if found in ACCEPTED else None


def described(content: Content) -> str:
    """What `content` is, with an article ("an HTML page"); "no known image" where nothing fits."""
    found = _kind(bytes(content[:_READ])) or "no known image"
    if found not in ACCEPTED:
        return found
    name = ACCEPTED[found]
    return f"{'an' if name[0] == 'A' else 'a'} {name}"


def _kind(start: bytes) -> str | None:
    """A key of `ACCEPTED`, or a description with an article, or None."""
    if start[4:8] == b"ftyp":
        compatible = start[16 : int.from_bytes(start[:4], "big")]
        if start[8:12] in (b"mif1", b"msf1") and b"avif" in compatible:
            return "AVIF"
        return _BRANDS.get(start[8:12], "an MP4 video")
    if start[:4] == b"RIFF":
        return _RIFF.get(start[8:12], "a RIFF file")
    for beginning, kind in (*_ACCEPTED_STARTS, *_OTHER_STARTS):
        if start.startswith(beginning):
            return kind
    if not start.strip(b"\0"):
        return "nothing but zero bytes"
    return _kind_of_text(start)


def _kind_of_text(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in text:
        return "an HTML page"
    if b"<svg" in text:
        return "an SVG drawing"
    if text.startswith(b"<?xml"):
        return "an XML file"
    try:
        # A character may be cut off at the end of what is read.
        plain = start.decode("utf-8", "strict" if len(start) < _READ else "ignore")
    except UnicodeDecodeError:
        return None
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in plain):
        return None
    return "JSON" if text.startswith((b"{", b"[")) else "text"
