"""A run that resumes inside an epoch: the same batches, and nothing earlier is read."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from damage import flip
from packed import open_split
from streaming import assert_equal, batches_of, keys_by_step, real_keys, requests

from mmsa.data.index_file import read_index
from mmsa.data.manifest import load_manifest
from mmsa.data.raw_sample import RawSample
from mmsa.data.reader import SplitReader
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage


def test_several_interruptions_in_one_epoch_on_other_worlds_and_workers(
    reader: SplitReader, tokenizer: TextTokenizer
) -> None:
    """What the parts read, joined, is what one uninterrupted run reads, step by step."""
    expected = keys_by_step(reader, tokenizer, 14, global_batch_size=4, drop_last=False)
    found = []
    parts = ((0, 1, 1, 0), (1, 3, 2, 2), (3, 4, 4, 0), (4, 6, 1, 2), (6, 14, 2, 0))
    for start, stop, world_size, workers in parts:
        micro_steps = [
            batches_of(
                requests(
                    reader,
                    **{"global_batch_size": 4, "micro_batch_size": 1, "drop_last": False},
                    **{"world_size": world_size, "rank": rank},
                    **{"start_step": start, "stop_step": stop},
                ),
                tokenizer,
                workers=workers if rank == 0 else 0,
            )
            for rank in range(world_size)
        ]
        for _ in range(start, stop):
            turns = [next(rank) for rank in micro_steps for _ in range(4 // world_size)]
            found.append(sorted(real_keys(turns)))
    assert found == expected


def test_a_resumed_run_gets_the_remaining_batches(
    reader: SplitReader, tokenizer: TextTokenizer
) -> None:
    whole = list(batches_of(requests(reader, drop_last=False), tokenizer))
    for step in range(9):  # 4 steps an epoch: also at an epoch's end, and behind the last
        rest = batches_of(requests(reader, drop_last=False, start_step=step), tokenizer)
        assert_equal(list(rest), whole[step * 4 :])


def test_a_resumed_run_reads_nothing_of_the_past(
    tiny: Path, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    # Every tar is damaged but at the samples of the last step: what comes before is not touched.
    copied = Path(shutil.copytree(tiny, tmp_path / "set"))
    reader = open_split(copied, load_manifest(copied))
    expected = list(batches_of(requests(reader, start_step=2, stop_step=3), tokenizer))
    wanted = set(real_keys(expected))
    for number, info in enumerate(reader.shards):
        for record, n in zip(read_index(copied, info), range(info.num_samples), strict=True):
            if reader.read(number, n).key not in wanted:
                flip(copied / info.tar, int(record["offset"]) + 700)
    rest = list(batches_of(requests(reader, start_step=2, stop_step=3), tokenizer))
    assert_equal(rest, expected)
    with pytest.raises(ShardDamage):
        list(batches_of(requests(reader, stop_step=1), tokenizer))


class CountedReads(SplitReader):
    """A reader that notes what it is asked to read."""

    def __init__(self, reader: SplitReader) -> None:
        self.__dict__.update(reader.__getstate__())
        self.asked: list[tuple[int, int]] = []

    def read_all(self, places: Sequence[tuple[int, int]]) -> list[RawSample]:
        self.asked += places
        return super().read_all(places)


@pytest.mark.parametrize("bucket_by_length", [True, False])
def test_what_is_read_before_the_first_batch_does_not_depend_on_the_step(
    reader: SplitReader, tokenizer: TextTokenizer, bucket_by_length: bool
) -> None:
    for step in range(6):
        counted = CountedReads(reader)
        source = requests(counted, start_step=step, bucket_by_length=bucket_by_length)
        first = next(batches_of(source, tokenizer))
        assert [reader.read(*place).key for place in counted.asked] == first["keys"]
        assert len(first["keys"]) == 2
        # Of index files, those of the windows that the step touches: two of two shards at most.
        assert len(counted._indexes) <= 4
