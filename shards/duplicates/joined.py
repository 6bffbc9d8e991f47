"""Positions that belong together, joined transitively (disjoint sets in an array)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Joined:
    """The positions 0 to `count` - 1, each alone until it is joined.

    The root of a group is its smallest position, so the result does not depend on the order of
    joining.
    """

    def __init__(self, count: int) -> None:
        self._parent = np.arange(count)

    def roots(self, positions: Ints) -> Ints:
        """The root of each of `positions` (n,)."""
        roots = self._parent[positions]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[positions] = roots
        return roots

    def join(self, one: Ints, other: Ints) -> None:
        """Join `one[i]` with `other[i]` (n,), for every i."""
        one, other = self.roots(one), self.roots(other)
        apart = one != other
        if not apart.any():
            return
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        ends = np.concatenate([one[apart], other[apart]])
        roots, inverse = np.unique(ends, return_inverse=True)
        start, end = inverse.reshape(2, -1)
        graph = coo_array((np.ones(len(start), np.int8), (start, end)), (len(roots),) * 2)
        _, component = connected_components(graph, directed=False)
        # `roots` is sorted: the first of a component is its smallest.
        _, first = np.unique(component, return_index=True)
        self._parent[roots] = roots[first[component]]

    def links(self) -> Iterator[tuple[int, int]]:
        """(root, position) of every position that is not a root."""
        roots = self.roots(np.arange(len(self._parent)))
        members = np.flatnonzero(roots != np.arange(len(roots)))
        yield from zip(roots[members].tolist(), members.tolist(), strict=True)
