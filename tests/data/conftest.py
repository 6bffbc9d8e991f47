"""One small packed set, made once, for the tests that only read it."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from packed import open_split, packed_set

from mmsa.data.manifest import load_manifest
from mmsa.data.reader import SplitReader
from mmsa.data.text import TextTokenizer, word_tokenizer

# Every worker would import torch and webdataset by itself; forked off a server that has them, a
# dozen workers start in the time of one.
multiprocessing.set_forkserver_preload(["mmsa.data.stream"])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    packed_set(directory)
    return directory


@pytest.fixture
def reader(tiny: Path) -> SplitReader:
    return open_split(tiny, load_manifest(tiny))


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    return word_tokenizer((f"word{number}" for number in range(13)), 20, max_tokens=12)
