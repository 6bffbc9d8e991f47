"""Networks without initial values, for weights that exist already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_BLANK: ContextVar[bool] = ContextVar("blank", default=False)


@contextmanager
def blank_weights() -> Iterator[None]:
    """Inside, networks are built without initial values: fast, and in memory never written to.

    What they hold is arbitrary until weights are assigned, so nothing is measured on them.
    """
    from transformers.initialization import no_init_weights

    token = _BLANK.set(True)
    try:
        with no_init_weights():
            yield
    finally:
        _BLANK.reset(token)


def is_blank() -> bool:
    """Whether networks are built without values now: a probe of their features must not run."""
    return _BLANK.get()
