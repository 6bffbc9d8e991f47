"""How well an epoch is mixed, compared with a shuffle buffer of the same memory."""

from __future__ import annotations

import numpy as np
import webdataset as wds
from orders import order_of

from mmsa.data.index_file import INDEX_DTYPE
from mmsa.foundation.hashed_random import permutation

NUM_SHARDS, SIZE, WINDOW, BATCH = 64, 1000, 16, 32
SAMPLE_BYTES = 17_000  # an image packed at short side 256, its text and headers


def same_shard(shards: np.ndarray) -> float:
    """The share of pairs inside a batch whose two samples come from one shard.

    Samples that were packed side by side are alike (one author, one day, one class): this is what
    a shuffle has to break up.
    """
    batches = shards[: len(shards) // BATCH * BATCH].reshape(-1, BATCH)
    same = (batches[:, :, None] == batches[:, None, :]).sum(axis=(1, 2)) - BATCH
    return float((same / (BATCH * (BATCH - 1))).mean())


def through_a_buffer(samples: int) -> np.ndarray:
    """Shard numbers as webdataset's own shuffle stage emits them, shards permuted before."""
    order = np.repeat(permutation(NUM_SHARDS, 1), SIZE).tolist()
    stage = wds.shuffle(samples, initial=samples, seed=1)
    return np.array(list(stage(iter(order))))


def test_a_window_mixes_more_than_a_buffer_of_the_same_memory() -> None:
    # Two windows of index records and permuted numbers; no sample is read for it.
    window_bytes = 2 * WINDOW * SIZE * (INDEX_DTYPE.itemsize + 16)
    in_buffer = window_bytes // SAMPLE_BYTES
    assert in_buffer == 105

    order = order_of([SIZE] * NUM_SHARDS, window_shards=WINDOW)
    ours = same_shard(order.slice(0, len(order))[0])
    buffered = same_shard(through_a_buffer(in_buffer))
    whole = (SIZE - 1) / (NUM_SHARDS * SIZE - 1)  # a permutation of everything
    assert round(whole, 3) == 0.016
    assert 0.061 < ours < 0.064  # 1 in 16, the shards of a window
    assert buffered > 0.85  # nearly every batch is of one shard

    # The buffer that mixes as well holds some 8,000 samples, 75 times the memory.
    assert same_shard(through_a_buffer(6000)) > 0.08
    assert 0.055 < same_shard(through_a_buffer(8000)) < 0.07
    assert 75 * window_bytes < 8000 * SAMPLE_BYTES


def test_a_window_of_all_shards_is_a_permutation_of_everything() -> None:
    order = order_of([SIZE] * NUM_SHARDS, window_shards=NUM_SHARDS)
    whole = (SIZE - 1) / (NUM_SHARDS * SIZE - 1)
    assert abs(same_shard(order.slice(0, len(order))[0]) - whole) < 0.001
