"""The command line of a training command, and the limits of its process."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsa.errors import UserError
from mmsa.foundation.open_files import allow_open_files
from mmsa.process.arguments import take_configuration, training_parser
from mmsa.process.command import Command, run_command


@pytest.mark.parametrize(
    ("file", "words", "expected"),
    [
        ("a.yaml", ["b.c=1"], ("a.yaml", ["b.c=1"])),
        (None, ["a.yaml", "b.c=1"], ("a.yaml", ["b.c=1"])),
        (None, ["b.c=1", "a.yml"], ("a.yml", ["b.c=1"])),
        (None, ["b.c=x.yaml"], (None, ["b.c=x.yaml"])),
        (None, [__file__, "typo"], (__file__, ["typo"])),
    ],
)
def test_a_configuration_without_its_option(
    file: str | None, words: list[str], expected: tuple[str | None, list[str]]
) -> None:
    assert take_configuration(file, words) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "a.yaml", "b.c=1", "d.e=2"],
        ["b.c=1", "d.e=2", "--config", "a.yaml"],
        ["b.c=1", "--config", "a.yaml", "d.e=2"],
        ["--import", "parts", "b.c=1", "--config=a.yaml", "d.e=2"],
    ],
    ids=" ".join,
)
def test_settings_may_be_on_both_sides_of_an_option(words: list[str]) -> None:
    found = training_parser(None).parse_intermixed_args(words)
    assert (found.config, found.overrides) == ("a.yaml", ["b.c=1", "d.e=2"])


def test_two_configurations() -> None:
    with pytest.raises(UserError, match=r"one configuration .* 2 are given \(a.yaml, b.yaml\)"):
        take_configuration("a.yaml", ["b.yaml"])


@pytest.fixture
def limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("limit")
def test_too_few_open_files_are_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (31, hard))
    assert run_command(lambda command: None) == 2
    assert "error: this process may have 31 files open and needs more; raise the limit" in (
        capsys.readouterr().err
    )
    allow_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(4096, hard)
    assert run_command(lambda command: None) == 0


def test_a_process_that_runs_out_of_open_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def body(command: Command) -> None:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise RuntimeError("a library says something else") from error

    assert run_command(body) == 2
    said = capsys.readouterr().err
    assert "files open and needs more" in said
    assert "Traceback" not in said
