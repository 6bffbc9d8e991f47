"""Batches as a rank gets them: independent of workers, world size and interruptions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed import PREPROCESSING
from streaming import (
    AUGMENTATION,
    LAYOUT,
    assert_equal,
    batches_of,
    keys_by_step,
    real_keys,
    requests,
)

from mmsa.data.packed_texts import in_batch, of_batch
from mmsa.data.read_and_decode import Augmentation
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Loader
from mmsa.data.text import TextTokenizer
from mmsa.errors import UserError

# What a batch is.


def test_a_batch_holds_what_was_packed(reader: SplitReader, tokenizer: TextTokenizer) -> None:
    samples = {
        one.key: one for one in (reader.read(*place) for place in reader.all_records()[0].tolist())
    }
    batches = list(batches_of(requests(reader), tokenizer))
    assert len(batches) == 2 * 3 * 4  # epochs x steps x micro-batches
    for batch in batches:
        assert list(batch) == [
            "keys",
            "input_ids",
            "attention_mask",
            "packed_ids",
            "packed_positions",
            "packed_texts",
            "packed_bounds",
            "images",
            "labels",
            "targets",
            "modality_labels",
            "weights",
            "text_present",
            "image_present",
            "num_real",
            "num_images",
        ]
        packed = [samples[key] for key in batch["keys"]]
        ids, mask = tokenizer([one.text for one in packed])
        assert torch.equal(batch["input_ids"], ids)
        assert torch.equal(batch["attention_mask"], mask)
        _, _, expected = LAYOUT.tokens_of(tokenizer, [one.text for one in packed])
        found = of_batch(batch)
        assert (found is None) == (expected is None)
        assert all(map(torch.equal, found or (), expected or ()))
        assert batch["labels"].tolist() == [one.label for one in packed]
        assert batch["labels"].dtype == torch.int64
        assert batch["images"].shape == (2, 3, 24, 24)
        assert batch["images"].dtype == torch.uint8
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        assert batch["weights"].tolist() == [1.0, 1.0]
        assert (batch["text_present"], batch["image_present"]) == (None, None)
        assert (batch["num_real"], batch["num_images"]) == (2, 2)


def test_an_epoch_reads_every_sample_once(reader: SplitReader, tokenizer: TextTokenizer) -> None:
    batches = list(batches_of(requests(reader), tokenizer))
    first, second = real_keys(batches[:12]), real_keys(batches[12:])
    everything = {f"tiny-train-{n}" for n in range(25)}
    for keys in (first, second):
        assert len(set(keys)) == len(keys) == 24  # one is left out: 25 = 3 x 8 + 1
        assert set(keys) <= everything
    assert first != second


def test_images_differ_between_epochs_and_not_without_augmentation(
    reader: SplitReader, tokenizer: TextTokenizer
) -> None:
    def by_key(augmentation: Augmentation | None) -> list[dict[str, torch.Tensor]]:
        batches = list(batches_of(requests(reader), tokenizer, augmentation=augmentation))
        return [
            {
                key: image
                for one in part
                for key, image in zip(one["keys"], one["images"], strict=True)
            }
            for part in (batches[:12], batches[12:])
        ]

    first, second = by_key(AUGMENTATION)
    both = first.keys() & second.keys()
    assert len(both) >= 23
    assert sum(torch.equal(first[key], second[key]) for key in both) == 0
    first, second = by_key(None)
    assert all(torch.equal(first[key], second[key]) for key in both)


def test_text_alone_and_images_alone(reader: SplitReader, tokenizer: TextTokenizer) -> None:
    no_images = PREPROCESSING.model_copy(update={"image": None})
    both = list(batches_of(requests(reader, stop_step=1), tokenizer))
    text = list(
        Loader(requests(reader, stop_step=1), no_images, tokenizer, 0, AUGMENTATION, layout=LAYOUT)
    )
    images = list(batches_of(requests(reader, stop_step=1), None))
    assert_equal(text, [{**batch, "images": None} for batch in both])
    no_texts = {"input_ids": None, "attention_mask": None, **in_batch(None)}
    assert_equal(images, [{**batch, **no_texts} for batch in both])


# Independent of workers, world size and interruptions.


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(
    reader: SplitReader, tokenizer: TextTokenizer, workers: int
) -> None:
    source = requests(reader, drop_last=False)
    expected = list(batches_of(source, tokenizer))
    assert len(expected) == 2 * 4 * 4
    assert_equal(list(batches_of(source, tokenizer, workers=workers)), expected)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 8), (2, 2), (4, 2), (8, 1)])
@pytest.mark.parametrize("bucket_by_length", [True, False])
def test_the_world_changes_no_global_batch(
    reader: SplitReader,
    tokenizer: TextTokenizer,
    world_size: int,
    micro_batch_size: int,
    bucket_by_length: bool,
) -> None:
    expected = keys_by_step(reader, tokenizer, 8, drop_last=False)
    assert [len(keys) for keys in expected] == [8, 8, 8, 1, 8, 8, 8, 1]
    found = keys_by_step(
        reader,
        tokenizer,
        8,
        drop_last=False,
        world_size=world_size,
        micro_batch_size=micro_batch_size,
        bucket_by_length=bucket_by_length,
    )
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_world_and_accumulation_change_no_global_batch(
    reader: SplitReader, tokenizer: TextTokenizer, world_size: int, accumulation: int
) -> None:
    if 24 % (world_size * accumulation):
        with pytest.raises(UserError, match="does not divide"):
            requests(reader, global_batch_size=24, world_size=world_size, micro_batch_size=7)
        return
    shared: dict[str, Any] = {"drop_last": False, "global_batch_size": 24}
    expected = keys_by_step(reader, tokenizer, 4, micro_batch_size=24, **shared)
    assert [len(keys) for keys in expected] == [24, 1, 24, 1]
    micro = 24 // (world_size * accumulation)
    found = keys_by_step(
        reader, tokenizer, 4, world_size=world_size, micro_batch_size=micro, **shared
    )
    assert found == expected


def test_an_image_is_the_same_on_any_rank(reader: SplitReader, tokenizer: TextTokenizer) -> None:
    def images(world_size: int) -> dict[str, bytes]:
        found = {}
        for rank in range(world_size):
            source = requests(reader, stop_step=3, world_size=world_size, rank=rank)
            for batch in batches_of(source, tokenizer):
                for key, image in zip(batch["keys"], batch["images"], strict=True):
                    found[key] = image.numpy().tobytes()
        return found

    assert images(4) == images(1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_is_dealt_by_the_lengths_of_the_texts_that_are_read(
    reader: SplitReader, tokenizer: TextTokenizer, world_size: int
) -> None:
    """Two epochs over shards of 7, 0, 12, 1 and 5 samples in windows of two: every boundary."""
    lengths = {
        one.key: len(one.text)
        for one in (reader.read(*place) for place in reader.all_records()[0].tolist())
    }
    ranks = [
        list(
            batches_of(
                requests(reader, world_size=world_size, rank=rank, global_batch_size=12), tokenizer
            )
        )
        for rank in range(world_size)
    ]
    num_turns = 6 // world_size
    assert [len(batches) for batches in ranks] == [4 * num_turns] * world_size
    for step in range(4):
        turns = [
            [lengths[key] for batches in ranks for key in batches[step * num_turns + turn]["keys"]]
            for turn in range(num_turns)
        ]
        # Whoever reads it, a later turn of the step has no text shorter than an earlier one.
        everything = [length for turn in turns for length in turn]
        assert len(set(everything)) > 3
        assert everything == sorted(everything)


# The last incomplete step.


def test_the_last_incomplete_step_gives_every_rank_equally_many_batches(
    reader: SplitReader, tokenizer: TextTokenizer
) -> None:
    ranks = [
        list(
            batches_of(
                requests(
                    reader, drop_last=False, world_size=2, rank=rank, start_step=3, stop_step=4
                ),
                tokenizer,
            )
        )
        for rank in range(2)
    ]
    # One sample for 2 ranks x 2 micro-batches: three of the four are one row of weight 0.
    rows = [(batch["weights"].tolist(), batch["num_real"]) for rank in ranks for batch in rank]
    assert sorted(rows) == [([0.0], 0), ([0.0], 0), ([0.0], 0), ([1.0], 1)]
    keys = {key for rank in ranks for batch in rank for key in batch["keys"]}
    assert len(keys) == 1  # the filler is a sample of the same step
    for rank in ranks:
        for batch in rank:
            assert batch["images"].shape == (1, 3, 24, 24)
            assert batch["input_ids"].shape[0] == 1
