"""One sample's tar members: from a piece of a tar to its key, image, text and JSON.

The reader, verification and the indexing of tars packed by other programs all parse samples here.
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

from mmsa.foundation.parsing import parse_json

Content = bytes | memoryview
C = TypeVar("C", bytes, memoryview)  # the type of a piece of a tar and of its members
_BLOCK = 512  # bytes of a tar header; members are padded to a multiple
# Of an ustar header: name, size, type, and the first byte of the name's prefix.
_HEADER = struct.Struct("100s24x12s20xc188xc166x")
assert _HEADER.size == _BLOCK
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's members about the tar
_SHOWN, _SHOWN_NAMES = 40, 6  # characters and names in a message


@dataclass(frozen=True)
class Fields:
    """Extensions of a sample's members; of several, the first that exists is used.

    `json:caption` is the string `caption` in the member with extension `json`; any extension may
    take its place. Tars packed by other programs use other extensions, which the manifest lists in
    `packing.fields`. A sample may lack the modalities in `optional`, but not both.
    """

    image: tuple[str, ...] = ("jpg",)
    text: tuple[str, ...] = ("txt",)
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, packing: Mapping[str, Any], optional: Iterable[str] = ()) -> Fields:
        """The fields that a manifest's `packing` lists."""
        fields = packing.get("fields", {})
        return cls(
            tuple(fields.get("image", cls.image)),
            tuple(fields.get("text", cls.text)),
            frozenset(optional),
        )


def key_and_field(name: str) -> tuple[str, str] | None:
    """The key and the extension, in lower case, of a member's name: cut at the first dot after the
    last slash, as in WebDataset.

    None for a member that belongs to no sample: one without an extension, a hidden one (macOS puts
    `._NAME` into tars), and WebDataset's own `__NAME__`.
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    if dot <= start or (name.startswith("__") and _META.match(name)):
        return None
    return name[:dot], name[dot + 1 :].lower()


def sample_of(
    members: Sequence[tuple[str, C]], fields: Fields
) -> tuple[str, C | None, str | None, bytes]:
    """(key, image, text, unparsed `json` or b"") of one sample's tar members.

    Keys are those of `key_and_field`, and members without one are skipped. The image or the text is
    None where it is missing and optional; a text of nothing but whitespace is then missing. Raises
    `ValueError` if the members belong to several keys, if one is missing that is not optional, and
    if both are.
    """
    by_field: dict[str, C] = {}
    keys = set()
    count = 0
    for name, data in members:
        named = key_and_field(name)
        if named is not None:
            keys.add(named[0])
            by_field[named[1]] = data
            count += 1
    if len(keys) != 1 or len(by_field) != count:
        raise ValueError(f"it holds the members {_some(members)}: not one sample, each name once")
    key = keys.pop()
    image = next((by_field[name] for name in fields.image if name in by_field), None)
    texts = [field_text(name, by_field) for name in fields.text]
    text = next(filter(None, texts), None)
    if text is not None and "text" in fields.optional and not text.strip():
        text = None
    json = bytes(by_field.get("json", b""))
    needs_image = "image" not in fields.optional or text is None
    if text is None and "text" in fields.optional and image is not None:
        return key, image, None, json
    empty = any(found == "" for found in texts)
    if (image is None and needs_image) or (text is None and not empty):
        what, wanted = ("image", fields.image) if image is None else ("text", fields.text)
        raise ValueError(
            f"it holds the members {_some(members)} and no {what} ({', '.join(wanted)})"
            f"{_dotted(key, by_field, wanted)}"
        )
    if text is None:
        raise ValueError(f"the text of '{key}' is empty")
    return key, image, text, json


def _some(members: Sequence[tuple[str, C]]) -> str:
    """The first names of `members`, for a message."""
    names = [name if len(name) <= 2 * _SHOWN else f"{name[:_SHOWN]}..." for name, _ in members]
    more = f" and {len(names) - _SHOWN_NAMES:,} more" if len(names) > _SHOWN_NAMES else ""
    return f"{names[:_SHOWN_NAMES]}{more}"


def _dotted(key: str, by_field: Mapping[str, C], wanted: Sequence[str]) -> str:
    """A hint where a dot inside a name made part of the name an extension; else ""."""
    suffixes = tuple(f".{name.partition(':')[0]}" for name in wanted)
    for field in by_field:
        if field.endswith(suffixes):
            shown = field[-_SHOWN:]
            return (
                f". A key ends at its first dot: in '{key[-_SHOWN:]}.{shown}' the extension is "
                f"'{shown}'. Rename the members, without dots in keys"
            )
    return ""


def field_text(name: str, by_field: Mapping[str, C]) -> str | None:
    """The text of the member `name`, or of `MEMBER:NAME` in a JSON member; None if missing.

    A number becomes its digits. Raises `ValueError` for a member that is not UTF-8 or not JSON.
    """
    member, colon, inner = name.partition(":")
    if member not in by_field:
        return None
    if colon:
        value = object_in(bytes(by_field[member])).get(inner)
        return str(value) if isinstance(value, (str, int)) else None
    return str(by_field[member], "utf-8")


def object_in(content: bytes) -> dict[str, Any]:
    """The object in a JSON member; empty if it holds something else or is absent (b"").

    Raises `ValueError` if it is not JSON.
    """
    found = parse_json(content) if content else {}
    return found if isinstance(found, dict) else {}


def tar_members(content: C) -> list[tuple[str, C]]:
    """(name, bytes) of the regular members in a piece of a tar, in their order.

    A link is an error, because its content may be in another sample's piece; one that belongs to no
    sample is skipped. The members of a memoryview are views. Plain ustar headers (POSIX.1-1988) are
    read here, ten times as fast as by `tarfile`; anything else (long names, PAX headers) goes to
    `tarfile`. Raises `ValueError` or `tarfile.TarError` if it is not a tar or its last member is
    truncated.
    """
    members: list[tuple[str, C]] = []
    at = 0
    while at + _BLOCK <= len(content):
        name, digits, kind, prefix = _HEADER.unpack_from(content, at)
        digits = digits.rstrip(b" \0") or b"0"
        plain = kind in b"0\0" and prefix == b"\0"  # a file
        if not plain or not digits.isdigit():  # a negative size would loop forever
            return _tarfile_members(content)
        at += _BLOCK
        end = at + int(digits, 8)
        name = name.partition(b"\0")[0].decode("utf-8")
        if end > len(content):
            raise ValueError(f"the member {name} is longer than its sample")
        members.append((name, content[at:end]))
        at = end + (at - end) % _BLOCK
    return members


def is_link(member: tarfile.TarInfo) -> bool:
    """Whether a member is a hard or symbolic link: it has a name and no content."""
    return member.islnk() or member.issym()


def packed_sample(content: bytes) -> tuple[str, memoryview, str, bytes] | None:
    """(key, image, text, unparsed json) of a sample as `shards pack` writes it: `KEY.jpg`,
    `KEY.txt` and `KEY.json` in plain ustar headers and nothing else.

    The same as `sample_of(tar_members(content))`, in half of its time. None for whatever looks
    different, a sample without an image or a text among it: those two then read it, or say what is
    wrong. Raises `ValueError` only where they raise an error too.
    """
    name = content[:100].partition(b"\0")[0]
    key = name[:-4]
    last = key.rpartition(b"/")[2]
    if not name.endswith(b".jpg") or not last or b"." in last or name.startswith(b"__"):
        return None
    ends = []
    at = 0
    for extension in (b".jpg\0", b".txt\0", b".json\0"):
        digits = content[at + 124 : at + 135]
        plain = content[at + 135 : at + 136] == b"\0" == content[at + 345 : at + 346]
        if not (plain and content[at + 156 : at + 157] == b"0" and digits.isdigit()):
            return None
        if not content.startswith(key + extension, at):
            return None
        end = at + _BLOCK + int(digits, 8)
        ends.append((at + _BLOCK, end))
        at = end + -end % _BLOCK
    if at != len(content):
        return None
    (image, image_end), (text, text_end), (json, json_end) = ends
    words = str(content[text:text_end], "utf-8")
    if not words or words.isspace():
        return None
    return str(key, "utf-8"), memoryview(content)[image:image_end], words, content[json:json_end]


class _Bounded(BytesIO):
    """Bytes that can be read a limited number of times: with a negative size in a header, some
    versions of `tarfile` loop forever (CVE-2025-8194)."""

    def __init__(self, content: Content) -> None:
        super().__init__(content)
        self._reads_left = 100 + 8 * (len(content) // _BLOCK)

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("its headers lead in circles")
        return super().read(size)


def _tarfile_members(content: C) -> list[tuple[str, C]]:
    members = []
    # In this mode a damaged header is an error; by default, some count as the end of the tar.
    with tarfile.open(fileobj=_Bounded(content), mode="r:") as tar:
        for member in tar:
            if is_link(member):
                if key_and_field(member.name) is not None:
                    raise ValueError(
                        f"the member {member.name[: 2 * _SHOWN]} is a link to "
                        f"{member.linkname[: 2 * _SHOWN]}, and samples need files; write the tar "
                        "with tar --dereference --hard-dereference"
                    )
                continue
            opened = tar.extractfile(member)
            if opened is not None:
                data = opened.read()
                if len(data) != member.size:
                    raise ValueError(f"the member {member.name} is longer than its sample")
                members.append((member.name, type(content)(data)))
    return members
