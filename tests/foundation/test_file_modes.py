"""Files and directories have the mode that the umask gives, whatever library writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmsa.foundation.atomic_write import save_tensors, write_file


@contextmanager
def umask_of(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o027, 0o077])
def test_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    with umask_of(mask):
        save_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
        write_file(tmp_path / "folder" / "b.json", "{}")
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder" / "b.json").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [1.0, 1.0, 1.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "folder"]
