"""The plan at 10^8 samples, and streams of very many and very few shards. Memory, never time."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from packed import open_split, packed_set
from streaming import assert_equal, batches_of, real_keys, requests

from benchmarks.plan import NUM_SHARDS, SimulatedShards, peak_bytes, prepare, simulated_reader
from mmsa.data.manifest import ShardInfo
from mmsa.data.shard_table import ShardTable
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage
from mmsa.labels import LABEL_NAMES


@pytest.mark.parametrize("at", [0.7, pytest.param(0.0, marks=pytest.mark.soak)])
def test_steps_of_1e8_samples_are_found_in_64_mib(tmp_path: Path, at: float) -> None:
    """A worker's reader, the order and the windows of 40 steps; by tracemalloc, numpy included.

    Index files are there for the windows that these steps need, and for no others: opening any
    other would be an error.
    """
    reader, start = prepare(tmp_path, NUM_SHARDS, 4, at)
    assert len(reader) > 9.9e7
    written = len(list(tmp_path.glob("*.idx")))
    assert written <= 6 * 16
    assert peak_bytes(reader, 1024, -(-start // 1024), 40) < 64 << 20


def test_a_worker_asks_no_index_for_steps_that_others_read(tmp_path: Path) -> None:
    """Step 0 is the other worker's; its window's index files are not there."""
    reader = open_split(tmp_path, packed_set(tmp_path, [8] * 6))
    source = requests(reader, micro_batch_size=8, stop_step=3)
    source.window_shards = 1
    for number in source.order_of(0).window(0).members.tolist():
        (tmp_path / reader.shards[number].index).unlink()
    assert len(list(source(1, 2))) == 1  # step 1 of steps 0, 1, 2
    with pytest.raises(ShardDamage, match="cannot be read"):
        list(source(0, 2))


def test_what_travels_to_a_worker_grows_little_with_the_shards(tmp_path: Path) -> None:
    reader = simulated_reader(SimulatedShards(tmp_path, 10_000))
    assert len(pickle.dumps(reader)) < 200 * 10_000  # bytes


def test_a_table_of_shards_holds_what_the_manifest_says(tmp_path: Path) -> None:
    infos = packed_set(tmp_path).splits["train"].shards
    table = ShardTable(infos, LABEL_NAMES)
    assert tuple(table) == infos
    assert [table.tar(number) for number in range(5)] == [info.tar for info in infos]
    assert table.counts.tolist() == [list(info.classes.values()) for info in infos]
    with pytest.raises(IndexError):
        table[5]
    assert list(ShardTable([], LABEL_NAMES)) == []
    assert isinstance(table[0], ShardInfo)


def test_index_files_are_read_once_as_their_window_comes(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    """A window of more shards than a reader keeps open of itself; none of the window behind it."""
    reader = open_split(tmp_path, packed_set(tmp_path, [2] * 120))
    source = requests(reader, stop_step=20)
    source.window_shards = 80
    steps = iter(source())
    first = next(steps)
    window = set(source.order_of(first.epoch).window(0).members.tolist())
    assert len(window) == 80
    assert set(reader._indexes) == window
    for number in window:
        (tmp_path / reader.shards[number].index).unlink()
    assert len([request for request in steps if request.epoch == 0]) == 20 * 4 - 1


def test_one_shard_on_eight_ranks_with_five_workers_each(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    reader = open_split(tmp_path, packed_set(tmp_path, [25]))
    expected = list(batches_of(requests(reader, drop_last=False, micro_batch_size=8), tokenizer))
    ranks = []
    for rank in range(8):
        source = requests(
            reader, drop_last=False, world_size=8, micro_batch_size=1, rank=rank, stop_step=8
        )
        # Rank 0 with real processes; the others in this one, which changes nothing (see below).
        ranks.append(list(batches_of(source, tokenizer, workers=5 if rank == 0 else 0)))
    assert [len(rank) for rank in ranks] == [8] * 8
    for step, batch in enumerate(expected):
        union = [key for rank in ranks for key in real_keys([rank[step]])]
        assert sorted(union) == sorted(real_keys([batch]))


def test_a_thousand_shards_on_one_rank(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    reader = open_split(tmp_path, packed_set(tmp_path, [1] * 1000))
    source = requests(reader, micro_batch_size=8, stop_step=125)
    batches = list(batches_of(source, tokenizer))
    assert sorted(real_keys(batches)) == sorted(f"tiny-train-{n}" for n in range(1000))
    assert_equal(list(batches_of(source, tokenizer, workers=2))[:5], batches[:5])
