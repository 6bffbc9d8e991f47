"""Orders of small splits, as lists of (shard, ordinal)."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from mmsa.data.order import Order

Place = tuple[int, int]  # shard, ordinal in it

SHARD_SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def order_of(sizes: list[int], **changes: Any) -> Order:
    arguments = {"identity": "a", "seed": 0, "epoch": 0, "window_shards": 3, **changes}
    return Order(np.array(sizes, dtype=np.int64), **arguments)


def places(order: Order, start: int = 0, stop: int | None = None) -> list[Place]:
    shards, ordinals = order.slice(start, len(order) if stop is None else stop)
    return list(zip(shards.tolist(), ordinals.tolist(), strict=True))
