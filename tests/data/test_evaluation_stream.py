"""Evaluation: each sample once, in batches cut once; and how damage ends a stream."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import flip
from packed import open_split, packed_set, sample, seal, write_split
from streaming import assert_equal, batches_of, real_keys

from mmsa.data.batch_requests import EvaluationRequests
from mmsa.data.index_file import read_index
from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.text import TextTokenizer
from mmsa.errors import ShardDamage


def evaluation(reader: SplitReader, **changes: Any) -> EvaluationRequests:
    settings = {"batch_size": 4, "world_size": 1, "rank": 0, **changes}
    return EvaluationRequests(reader, **settings)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_evaluation_batches_are_cut_once_whatever_the_world(
    reader: SplitReader, tokenizer: TextTokenizer, world_size: int
) -> None:
    alone = list(batches_of(evaluation(reader), tokenizer, augmentation=None))
    assert len(alone) == 7
    ranks = []
    for rank in range(world_size):
        source = evaluation(reader, world_size=world_size, rank=rank)
        ranks.append(list(batches_of(source, tokenizer, augmentation=None)))
        assert len(ranks[-1]) == len(source) == -(-7 // world_size)
    turns = [ranks[number % world_size][number // world_size] for number in range(7)]
    assert_equal(turns, alone)
    spare = [
        batch
        for number, rank in enumerate(ranks)
        for batch in rank[len(alone[number::world_size]) :]
    ]
    assert len(spare) == world_size * -(-7 // world_size) - 7
    for batch in spare:
        assert batch["num_real"] == 0
        assert batch["weights"].tolist() == [0.0] * 4
        assert batch["images"].shape == (4, 3, 24, 24)


def test_evaluation_has_each_sample_once_by_length(
    reader: SplitReader, tokenizer: TextTokenizer
) -> None:
    batches = list(batches_of(evaluation(reader), tokenizer, augmentation=None))
    assert sorted(real_keys(batches)) == sorted(f"tiny-train-{n}" for n in range(25))
    lengths = {
        one.key: len(one.text)
        for one in (reader.read(*place) for place in reader.all_records()[0].tolist())
    }
    in_order = [lengths[key] for key in real_keys(batches)]
    assert in_order == sorted(in_order)
    last = batches[-1]
    assert last["num_real"] == 1
    assert last["weights"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert len(set(last["keys"])) == 1
    assert torch.equal(last["images"][0], last["images"][3])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_repeats_its_passes(
    reader: SplitReader, tokenizer: TextTokenizer, workers: int
) -> None:
    once = list(batches_of(evaluation(reader), tokenizer, augmentation=None))
    source = evaluation(reader, repeat=True)
    loader = batches_of(source, tokenizer, workers=workers, augmentation=None)
    for _ in range(3):
        assert_equal([next(loader) for _ in range(len(source))], once)


def test_an_empty_split_is_evaluated_at_once(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    reader = open_split(tmp_path, packed_set(tmp_path, [0, 0]))
    for repeat in (False, True):
        source = evaluation(reader, repeat=repeat)
        assert len(source) == 0
        assert list(batches_of(source, tokenizer)) == []
    no_shards = seal(tmp_path, {"train": write_split(tmp_path, "train", [])})
    assert list(batches_of(evaluation(open_split(tmp_path, no_shards)), tokenizer)) == []


# Damage.


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_met_by_a_worker_arrives_as_what_it_is(
    tiny: Path, tmp_path: Path, tokenizer: TextTokenizer, workers: int
) -> None:
    copied = Path(shutil.copytree(tiny, tmp_path / "set"))
    reader = open_split(copied, load_manifest(copied))
    offset = int(read_index(copied, reader.shards[2])[3]["offset"])
    flip(copied / "train-00002.tar", offset + 700)
    source = evaluation(reader)
    expected = list(batches_of(evaluation(open_split(tiny, load_manifest(tiny))), tokenizer))
    before = next(n for n, batch in enumerate(expected) if "tiny-train-10" in batch["keys"])
    loader = batches_of(source, tokenizer, workers=workers)
    assert_equal([next(loader) for _ in range(before)], expected[:before])
    with pytest.raises(ShardDamage, match="tiny-train-10") as damage:
        next(loader)
    assert (damage.value.shard, damage.value.key) == ("train-00002.tar", "tiny-train-10")


def test_an_image_that_does_not_decode_is_named(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    # Packed by a program that does not look: every checksum agrees.
    cut = replace(sample(1), image=sample(1).image[:300])
    manifest = seal(tmp_path, {"train": write_split(tmp_path, "train", [[sample(0), cut]])})
    reader = open_split(tmp_path, manifest)
    with pytest.raises(ShardDamage, match="image of tiny-train-1 in train-00000.tar") as damage:
        list(batches_of(evaluation(reader), tokenizer))
    assert (damage.value.shard, damage.value.key) == ("train-00000.tar", "tiny-train-1")
