"""Which rows are computed together: as an evaluation would, and in pieces that are kept.

The float32 rounding of a row's logits depends on the batch that it is in: on its size, and on the
lengths of the texts. So the batches are those of an evaluation: sorted by text length, then by the
hash of the key, cut at the export's `eval.batch_size`, the last one filled up. They depend on the
input alone, not on processes or on an interruption.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsa.data.plan import evaluation_batches, evaluation_order
from mmsa.foundation.hashed_random import IntArray
from mmsa.prediction.inputs.source import Window

PIECE_BATCHES = 4  # computed by one process and then kept, also if the command is interrupted


@dataclass(frozen=True, order=True)
class PieceName:
    """A piece: the number of its window, and its own in the window."""

    window: int
    number: int

    def __str__(self) -> str:
        return f"{self.window:06d}-{self.number:06d}"


@dataclass(frozen=True)
class Work:
    """One batch of a piece: the places (n,) of its rows in the window, with n up to B.

    `is_last` marks the last batch of its piece. The first batch of a window always exists; it is
    without rows where no row can be predicted.
    """

    piece: PieceName
    places: IntArray
    is_last: bool
    is_first: bool = False  # of its window


def works_of(number: int, window: Window, batch_size: int) -> Iterator[Work]:
    """The batches of window `number`, in order."""
    order = evaluation_order(window.lengths, window.key_hashes)
    cuts = list(evaluation_batches(len(order), batch_size=batch_size, world_size=1, rank=0))
    if not cuts:
        yield Work(PieceName(number, 0), order, True, True)
    for batch, (start, stop) in enumerate(cuts):
        is_last = batch + 1 == len(cuts) or (batch + 1) % PIECE_BATCHES == 0
        piece = PieceName(number, batch // PIECE_BATCHES)
        yield Work(piece, window.usable[order[start:stop]], is_last, batch == 0)
