"""A collective that broke off, in words. Real ones are met in tests/faults."""

from __future__ import annotations

import pytest
import torch

from mmsa.errors import first_line
from mmsa.process.collective_errors import lost_contact

CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
    "[10.0.0.7]:41367. This is typically caused by a remote worker crashing.\nand more"
)
NO_ANSWER = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms "
    "for recv operation to complete"
)


# As a rank meets it whose call of NCCL fails; where its watchdog does, no exception arrives.
NCCL_REMOTE = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, remote process exited "
    "or there was a network error, NCCL version 2.27.3\nncclRemoteError: A call failed possibly "
    "due to a network error or a remote process exiting prematurely."
)


def test_errors_of_nccl_are_told_like_those_of_gloo() -> None:
    words = lost_contact(torch.distributed.DistBackendError(NCCL_REMOTE), 2)
    assert words is not None
    assert words.startswith("lost contact with another rank: it died, or its machine is gone")
    late = torch.distributed.DistBackendError("NCCL operation timed out after 1800 s")
    assert "did not answer within run.collective_timeout_s" in str(lost_contact(late, 2))


def test_a_rank_that_is_gone() -> None:
    words = lost_contact(RuntimeError(CLOSED), 3)
    assert words is not None
    assert words.startswith(
        "lost contact with another rank: it died, or its machine (10.0.0.7) is gone. "
        "Rank 3 noticed."
    )
    assert words.endswith("The same command resumes from the last checkpoint")
    assert "gloo" not in words
    assert first_line(RuntimeError(CLOSED)).endswith("caused by a remote worker crashing.")


def test_a_rank_that_does_not_answer() -> None:
    words = lost_contact(RuntimeError(NO_ANSWER), 0)
    assert words is not None
    assert words.startswith("another rank did not answer within run.collective_timeout_s")
    assert "Rank 0 waited for it" in words


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("gloo"), OSError()])
def test_any_other_error(error: Exception) -> None:
    assert lost_contact(error, 0) is None
    assert first_line(error)
