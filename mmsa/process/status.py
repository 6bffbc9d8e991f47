"""`RUN/status.json`: the state of a run and how it ended, for scripts and schedulers.

`{state: running | done | preempted | failed, reason, step, exit_code, ...}`, see
docs/run-directory.md. `Command` writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STATUS_NAME = "status.json"


def read_status(status_file: Path) -> dict[str, Any]:
    """The content of a `status.json`; empty if there is none that can be read."""
    try:
        content = json.loads(status_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
