"""For `evaluate.py --import`: rank 1 opens a run when rank 0 has loaded its model and that has been
removed, so that the two have different models."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

_RUN = Path(os.environ["LIVE_RUN"])
_LOADED = _RUN.with_suffix(".loaded")
_waited = False


def _before_opening(event: str, arguments: tuple[Any, ...]) -> None:
    global _waited
    if event == "open" and not _waited and str(arguments[0]).startswith(f"{_RUN}/checkpoints/"):
        _waited = True
        while not _LOADED.exists():
            time.sleep(0.02)
        loaded = _LOADED.read_text()
        while loaded == os.readlink(_RUN / "best"):
            time.sleep(0.02)


def _when_loaded(event: str, arguments: tuple[Any, ...]) -> None:
    # Set when the process group is about to be made, which is after the model was loaded.
    if event == "os.putenv" and arguments[0] == b"ACCELERATE_USE_DEEPSPEED":
        _LOADED.write_text(os.readlink(_RUN / "best"))


sys.addaudithook(_before_opening if os.environ.get("RANK") == "1" else _when_loaded)
