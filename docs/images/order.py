"""Draw docs/images/order.png: how the shards of an epoch become the batches of its ranks.

    python docs/images/order.py

The order and the dealing are the real ones, of eight small shards.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from mmsa.data.order import Order
from mmsa.data.plan import batch_plan, deal
from mmsa.foundation.hashed_random import permutation, stream_key

SIZES = np.array([6, 4, 7, 5, 8, 3, 6, 9])  # 48 samples
WINDOW, GLOBAL_BATCH, STEP = 4, 12, 1
COLOURS = plt.get_cmap("Set2")(np.arange(8))
INK = "#333333"


def cell(axes: Axes, x: float, y: float, shard: int, ordinal: int) -> None:
    axes.add_patch(
        plt.Rectangle((x, y), 1, 1, facecolor=COLOURS[shard], edgecolor="white", linewidth=1)
    )
    axes.text(x + 0.5, y + 0.48, str(ordinal), ha="center", va="center", fontsize=6.5, color=INK)


def row(axes: Axes, y: float, title: str, places: list[tuple[int, int]]) -> None:
    for x, (shard, ordinal) in enumerate(places):
        cell(axes, x, y, shard, ordinal)
    axes.text(-0.6, y + 0.5, title, ha="right", va="center", fontsize=9, color=INK)


def bracket(axes: Axes, start: float, stop: float, y: float, text: str) -> None:
    axes.plot([start + 0.1, start + 0.1, stop - 0.1, stop - 0.1], [y, y - 0.25, y - 0.25, y],
              color=INK, linewidth=1)  # fmt: skip
    axes.text((start + stop) / 2, y - 0.35, text, ha="center", va="top", fontsize=8, color=INK)


def dealt(axes: Axes, y: float, world_size: int, places: list[tuple[int, int]]) -> None:
    """The places of one step as `world_size` ranks take them in micro-batches of three."""
    plan = batch_plan(48, global_batch_size=12, micro_batch_size=3, world_size=world_size)
    lengths = np.array([20 + 13 * (5 * n % 12) for n in range(12)])  # some text lengths
    for rank in range(world_size):
        for turn, positions in enumerate(deal(lengths, 12, plan, rank)):
            for number, position in enumerate(positions):
                cell(axes, turn * 3.6 + number, y - 1.25 * rank, *places[position])
        axes.text(-0.6, y - 1.25 * rank + 0.5, f"rank {rank} of {world_size}", ha="right",
                  va="center", fontsize=9, color=INK)  # fmt: skip


def main() -> None:
    order = Order(SIZES, identity="picture", seed=0, epoch=0, window_shards=WINDOW)
    shards, ordinals = order.slice(0, len(order))
    places = list(zip(shards.tolist(), ordinals.tolist(), strict=True))
    packed = [(shard, n) for shard, size in enumerate(SIZES) for n in range(size)]
    permuted = permutation(8, stream_key("shards", "picture", 0, 0)).tolist()
    lined_up = [(shard, n) for shard in permuted for n in range(SIZES[shard])]
    first_window = int(SIZES[permuted[:WINDOW]].sum())

    figure, axes = plt.subplots(figsize=(13, 6.6))
    row(axes, 13.2, "packed: 8 shards", packed)
    row(axes, 10.7, "shards permuted", lined_up)
    bracket(axes, 0, first_window, 10.6, f"window of {WINDOW} shards")
    bracket(axes, first_window, 48, 10.6, "next window")
    row(axes, 7.2, "the order:\nsamples permuted\nin their window", places)
    for step in range(4):
        text = f"step {step}" + (" (global batch of 12)" if step == 0 else "")
        bracket(axes, 12 * step, 12 * step + 12, 7.1, text)
    here = places[STEP * GLOBAL_BATCH : (STEP + 1) * GLOBAL_BATCH]
    axes.text(0, 5.0, f"step {STEP}, sorted by text length, dealt in micro-batches of 3; "
              "what stands one below the other runs at the same moment",
              fontsize=9, color=INK, va="center")  # fmt: skip
    dealt(axes, 3.3, 2, here)
    dealt(axes, 0.3, 4, here)
    axes.set_xlim(-8.5, 48.5)
    axes.set_ylim(-3.8, 14.6)
    axes.axis("off")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("order.png"), dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
