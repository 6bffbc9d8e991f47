"""Whole shards read ahead: by each worker its part, and into the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from pathlib import Path

import pytest
from packed import packed_set
from streaming import requests

from mmsa.data.batch_requests import TrainRequests
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.storage.readahead import ReadAhead
from mmsa.labels import class_map


def resident_pages(path: Path) -> float:
    """The share of a file's pages that the page cache has."""
    size = path.stat().st_size
    with path.open("rb") as file:
        view = mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    start = (ctypes.c_char * size).from_buffer(view)
    assert not ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(size), states)
    del start
    view.close()
    return sum(state & 1 for state in states) / pages


def test_what_was_read_ahead_is_in_the_page_cache(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.tar", "b.tar", "c.tar")]
    for path in paths:
        path.write_bytes(os.urandom(9_000_001))  # more than one piece
        with path.open("r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if any(resident_pages(path) for path in paths):
        pytest.skip("this file system keeps its files in memory")
    ahead = ReadAhead(tmp_path)
    ahead.ask((0, 0), ["a.tar", "missing.tar"])
    ahead.ask((0, 1), ["b.tar"])
    ahead.wait()
    assert [resident_pages(path) for path in paths] == [1.0, 1.0, 0.0]


def test_windows_that_are_over_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = ReadAhead(tmp_path)
    monkeypatch.setattr(ahead, "_thread", object())  # nothing is read yet
    for number in (3, 4):
        ahead.ask((0, number), [f"{number}.tar"])
    ahead.forget_all_but([(0, 4), (0, 5)])
    assert not ahead.knows((0, 3))
    assert ahead.knows((0, 4))
    assert ahead._waiting == {(0, 4): ["4.tar"]}


@pytest.mark.parametrize(("groups", "share"), [(1, 4), (2, 2), (4, 1)])
def test_the_ranks_of_a_machine_divide_what_they_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int, share: int
) -> None:
    """Four ranks of two workers: together they ask for each tar of a window in use once."""
    packed_set(tmp_path)
    manifest = load_manifest(str(tmp_path))
    reader = SplitReader(tmp_path, manifest, "train", class_map(manifest.classes, None))
    asked: list[tuple[tuple[int, int], str]] = []
    monkeypatch.setattr(
        ReadAhead,
        "ask",
        lambda self, window, names: (
            self._known.add(window),
            asked.extend((window, name) for name in names),
        ),
    )
    used: set[tuple[tuple[int, int], str]] = set()
    for rank in range(4):
        source = requests(
            reader, world_size=4, micro_batch_size=1, rank=rank, groups=groups, stop_step=3
        )
        assert isinstance(source, TrainRequests)
        source.read_ahead = (rank, 4)
        for worker in range(2):
            for _ in source(worker, 2):
                pass
        order = source.order_of(0)
        for step in range(3):
            block = source.plan.block(rank, *source.plan.locate(step)[1:])
            assert block.plan.world_size == share
            for number, _ in order.pieces(block.start, block.stop):
                wanted = (number, order.following(number))
                used.update(
                    ((0, window), reader.shards.tar(shard))
                    for window in wanted
                    if window is not None
                    for shard in order.members(window).tolist()
                )
    assert sorted(asked) == sorted(used)


def test_what_is_read_ahead_does_not_change_the_requests(tmp_path: Path) -> None:
    packed_set(tmp_path)
    manifest = load_manifest(str(tmp_path))
    reader = SplitReader(tmp_path, manifest, "train", class_map(manifest.classes, None))
    source = requests(reader)
    plain = [(each.shards.tolist(), each.ordinals.tolist()) for each in source()]
    source.read_ahead = (0, 1)
    before = threading.active_count()
    assert [(each.shards.tolist(), each.ordinals.tolist()) for each in source()] == plain
    assert threading.active_count() <= before + 1  # one thread for all epochs
