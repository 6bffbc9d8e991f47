"""What a collective that broke off says of the other ranks, in words."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")  # as gloo names a peer: [10.0.0.7]:45612
_DID_NOT_ANSWER = ("timed out", "timeout")


def lost_contact(error: Exception, rank: int) -> str | None:
    """In words, what `rank` met in a collective that another rank broke off.

    None for any other error. Which rank it was a peer cannot know, its machine it often can; the
    launcher of that rank, which saw it end, names it.
    """
    import torch

    text = str(error)
    of_torch = isinstance(error, torch.distributed.DistError)
    if not of_torch and not (isinstance(error, RuntimeError) and "gloo" in text.lower()):
        return None
    address = _ADDRESS.search(text)
    machine = f" ({address[1]})" if address else ""
    if any(words in text.lower() for words in _DID_NOT_ANSWER):
        what = (
            "another rank did not answer within run.collective_timeout_s: it hangs, or is slow. "
            f"Rank {rank} waited for it. Look at what the other ranks do (py-spy dump --pid PID)"
        )
    else:
        what = (
            f"lost contact to another rank: it died, or its machine{machine} is gone. Rank {rank} "
            "met it. Look for the rank's own words; its launcher says which one ended, and how "
            "(exitcode -9: killed, often because memory ran out)"
        )
    return f"{what}. The same command goes on from the last checkpoint"


def first_line(error: Exception) -> str:
    """The words of the library itself, for the log."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
