"""What a broken collective tells about the other ranks, as a message for the user."""

from __future__ import annotations

import re

_ADDRESS = re.compile(r"\[([0-9A-Fa-f.:]+)\]:\d+")  # as gloo names a peer: [10.0.0.7]:45612
_DID_NOT_ANSWER = ("timed out", "timeout")


def lost_contact(error: Exception, rank: int) -> str | None:
    """The message for `rank` if `error` comes from a collective that another rank broke.

    None for any other error. A peer cannot know which rank it was, though often which machine; the
    launcher of that rank, which saw it end, names the rank.
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
            "another rank did not answer within run.collective_timeout_s: it hangs or is slow. "
            f"Rank {rank} waited for it. Check what the other ranks do (py-spy dump --pid PID)"
        )
    else:
        what = (
            f"lost contact with another rank: it died, or its machine{machine} is gone. Rank "
            f"{rank} noticed. Look for that rank's own message; its launcher says which one ended "
            "and how (exitcode -9: killed, often because memory ran out)"
        )
    return f"{what}. The same command resumes from the last checkpoint"
