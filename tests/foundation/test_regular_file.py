"""Regular files alone are opened, and an interruption stays what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mmsa.foundation import regular_file
from mmsa.foundation.regular_file import NotRegular, open_regular, read_regular


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert read_regular(path) == b"abc"
    with open_regular(str(path)) as file:
        assert os.get_inheritable(file.fileno()) is False
        assert file.read() == b"abc"


def test_what_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "a named pipe"), (".", "a directory")):
        before = open_descriptors()
        with pytest.raises(NotRegular, match="it is") as refused:
            open_regular(tmp_path / name)
        assert refused.value.strerror == f"it is {kind}, expected a file"
        assert open_descriptors() == before
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")
    with pytest.raises(ValueError, match="null"):
        open_regular("a\0b")


def test_an_interruption_behind_the_open_is_none_of_the_files_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal came between `open` and its caller; the descriptor was closed twice, and the second
    time was taken for a file that cannot be read: a packing left out the sample, and went on."""

    def interrupted(*arguments: Any, **options: Any) -> Any:
        open(*arguments, **options).close()  # as the caller's frame does, which ends
        raise SystemExit(143)

    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    monkeypatch.setattr(regular_file, "open", interrupted, raising=False)
    before = open_descriptors()
    with pytest.raises(SystemExit):
        open_regular(path)
    assert open_descriptors() == before


def open_descriptors() -> set[int]:
    found = set()
    for descriptor in range(256):
        try:
            os.fstat(descriptor)
        except OSError:
            continue
        found.add(descriptor)
    return found
