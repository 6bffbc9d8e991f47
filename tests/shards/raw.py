"""Raw trees in MVSA-Single's layout, written by tests."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(shade: int, *, size: tuple[int, int] = (40, 32)) -> bytes:
    """A small JPEG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, (shade * 7) % 256, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_pair(raw: Path, source_id: str, *, text: bytes | None = None) -> None:
    """`data/ID.txt` and `data/ID.jpg`, both usable."""
    (raw / "data").mkdir(parents=True, exist_ok=True)
    content = f"tweet number {source_id}\r\n".encode("gb18030") if text is None else text
    (raw / "data" / f"{source_id}.txt").write_bytes(content)
    (raw / "data" / f"{source_id}.jpg").write_bytes(jpeg(int(source_id)))


def write_labels(raw: Path, lines: Iterable[str]) -> None:
    """`labelResultAll.txt` of a header and `lines`, with CRLF."""
    raw.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\r\n" for line in ["ID\ttext,image", *lines])
    (raw / "labelResultAll.txt").write_bytes(content.encode("utf-8"))


def raw_tree(raw: Path, labels: Iterable[str]) -> Path:
    """A whole raw set: sample 1 has the first of `labels` ("text,image"), and so on."""
    lines = []
    for number, pair in enumerate(labels, start=1):
        write_pair(raw, str(number))
        lines.append(f"{number}\t{pair}")
    write_labels(raw, lines)
    return raw


def digests(directory: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file under `directory`."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def rejected(out: Path) -> list[dict[str, Any]]:
    """The lines of `OUT/rejected.jsonl`."""
    lines = (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
