"""Where the samples of a tar begin and end, and whether the tar ends as a tar should.

Members that WebDataset's own reader skips are skipped, but for links: they belong to their sample,
which does not fit with one.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

from mmsa.data.members import is_link, key_and_field
from mmsa.errors import UserError
from mmsa.foundation.regular_file import open_regular

_BLOCK = 512  # bytes of a header; members are padded to a multiple
_PIECE = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Extents:
    """(first byte, byte after the last) of each sample, and sentences on a doubtful end."""

    samples: list[tuple[int, int]]
    warnings: list[str]


def extents(path: Path) -> Extents:
    """The samples of a tar: runs of members with the same key.

    Raises `UserError` where the tar is cut or a header inside it is damaged, `tarfile.TarError`
    where it is no uncompressed tar at all, and `OSError`.
    """
    samples: list[tuple[int, int]] = []
    last: str | None = None
    member: tarfile.TarInfo | None = None
    with tarfile.open(path, "r:") as tar:
        try:
            for member in tar:
                if not (member.isfile() or is_link(member)):
                    continue
                named = key_and_field(member.name)
                if named is None:
                    continue
                size = member.size if member.isfile() else 0  # a link's may be that of its target
                stop = member.offset_data + -(-size // _BLOCK) * _BLOCK
                if named[0] == last:
                    samples[-1] = samples[-1][0], stop
                else:
                    samples.append((member.offset, stop))
                last = named[0]
        except tarfile.TarError:
            if member is None:
                raise
            raise UserError(_cut(path, member, last)) from None
        at = tar.offset
    return Extents(samples, _after(path, at, member, last))


def _cut(path: Path, member: tarfile.TarInfo | None, key: str | None) -> str:
    where = "" if member is None else f" in or behind the member '{member.name[:80]}'"
    sample = "" if key is None else f" (sample '{key[:80]}')"
    return (
        f"{path} is cut: it ends at byte {path.stat().st_size:,},{where}{sample}. Copy or download "
        "it again"
    )


def _after(path: Path, at: int, member: tarfile.TarInfo | None, key: str | None) -> list[str]:
    """What is wrong from byte `at` on, where the last member ends."""
    with open_regular(path) as file:
        file.seek(at)
        block = file.read(_BLOCK)
        if not block:
            if member is None:
                return []
            return [f"{path.name} has no end mark: members behind '{key}' may be missing"]
        if len(block) < _BLOCK:
            raise UserError(_cut(path, member, key))
        if any(block):
            raise UserError(
                f"{path} is damaged at byte {at:,}: there should be the header of a member. What "
                "follows cannot be read; copy or download it again"
            )
        start = at + _BLOCK
        while piece := file.read(_PIECE):
            if any(piece):
                first = start + len(piece) - len(piece.lstrip(b"\0"))
                behind = path.stat().st_size - first
                return [
                    f"{path.name} goes on behind its end mark: {behind:,} bytes, from byte "
                    f"{first:,} on, are not read. Take tars that were joined with cat apart, or "
                    "join them with tar --concatenate"
                ]
            start += len(piece)
    return []
