"""What an operator decides about a server. Without heavy imports: the command line shows it."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from mmsa.data.decoding.limits import LARGEST_MAX_PIXELS, MAX_CHARACTERS, MAX_PIXELS

MIB = 1 << 20


class Options(BaseModel):
    """The settings of one server; `command` has an option for each of those that users change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)  # 0: any free one
    root_path: str = ""  # the prefix that a proxy removes; for the OpenAPI document alone
    token: str | None = Field(None, repr=False)
    log_requests: bool = False

    max_body_bytes: int = Field(16 * MIB, ge=1024)
    max_pixels: int = Field(MAX_PIXELS, ge=1, le=LARGEST_MAX_PIXELS)
    max_characters: int = Field(MAX_CHARACTERS, ge=1)
    max_posts: int = Field(256, ge=1)  # of one batch request
    max_bytes_in_flight: int = Field(512 * MIB, ge=1024)  # bodies of all requests together
    timeout_s: float = Field(30.0, gt=0)  # to send a request; and again to answer it

    queue: int = Field(256, ge=1)  # requests accepted and not yet answered
    max_batch: int = Field(16, ge=1)  # rows computed together
    max_wait_ms: float = Field(5.0, ge=0)
    threads: int = Field(default_factory=lambda: _cores(), ge=1)  # of all forward passes
    parallel: int = Field(2, ge=1)  # batches computed at the same time on a CPU
    decoders: int = Field(default_factory=lambda: min(8, _cores()), ge=1)

    images: Path | None = None  # the folder of POST /test_model
    training: Path | None = None  # the configuration of POST /train_model
    training_processes: int = Field(1, ge=1)
    imports: list[str] = []  # modules that the model and a training need
    reload_s: float = Field(10.0, ge=0)  # how often a run is asked for a newer best; 0: never


def _cores() -> int:
    return len(os.sched_getaffinity(0))
