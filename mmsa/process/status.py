"""`RUN/status.json`: the state of a run and how it ended, for scripts and schedulers.

`{state: running | done | preempted | failed, reason, step, exit_code, ...}`, see
docs/run-directory.md. `Command` writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsa.foundation.parsing import parse_json

STATUS_NAME = "status.json"


def read_status(status_file: Path) -> dict[str, Any]:
    """The content of a `status.json`; empty if there is none that can be read."""
    try:
        content = parse_json(status_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
