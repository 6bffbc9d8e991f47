"""Starting a process that does not run the script of this one again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOCK = threading.Lock()  # two threads would restore what the other has hidden


@contextmanager
def without_main_module() -> Iterator[None]:
    """Let multiprocessing forget which script started this process.

    It would import that script in each worker, which needs nothing of it: seconds for train.py, and
    a second run of a script that is not guarded by `__name__ == "__main__"`.
    """
    with _LOCK:
        yield from _hidden()


def _hidden() -> Iterator[None]:
    main = sys.modules["__main__"]
    names = [name for name in ("__spec__", "__file__") if name in vars(main)]
    hidden: dict[str, Any] = {name: vars(main)[name] for name in names}
    vars(main).pop("__file__", None)
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)
