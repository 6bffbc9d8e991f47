"""The tars that a process has open, the least recently read closed first."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection

from mmsa.data.storage.cache import Wanted
from mmsa.data.storage.files import CachedFiles, LocalFiles

_OPEN_TARS = 64  # file descriptors kept open per process


class OpenTars:
    """Descriptors by the number of a shard. Pickled without them."""

    def __init__(self, files: LocalFiles | CachedFiles) -> None:
        self._files = files
        self._open: OrderedDict[int, tuple[int, str]] = OrderedDict()  # descriptors, their names

    def name(self, shard: int) -> str | None:
        """The name of a tar that is open, else None."""
        opened = self._open.get(shard)
        return opened[1] if opened else None

    def descriptor(self, shard: int, tar: Callable[[], Wanted]) -> int:
        """The open tar of `shard`; `tar` says which it is. Raises as `LocalFiles` does."""
        opened = self._open.get(shard)
        if opened is None:
            wanted = tar()
            opened = self._open[shard] = self._files.open_tar(wanted), wanted.name
            while len(self._open) > _OPEN_TARS:
                os.close(self._open.popitem(last=False)[1][0])
        self._open.move_to_end(shard)
        return opened[0]

    def close_others(self, kept: Collection[int]) -> None:
        """Close all but the shards of `kept`, so that a node's cache may delete them."""
        for shard in [shard for shard in self._open if shard not in kept]:
            os.close(self._open.pop(shard)[0])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        # The attribute is missing if the constructor raised.
        for descriptor, _ in self.__dict__.get("_open", {}).values():
            os.close(descriptor)
