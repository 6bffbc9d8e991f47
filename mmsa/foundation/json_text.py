"""JSON whose nesting has a limit: beyond it, Python's own reader raises no `ValueError`."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`; raises `ValueError` for everything that it cannot read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
