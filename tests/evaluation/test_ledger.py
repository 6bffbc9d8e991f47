"""The ledger of test-split openings: counted across processes, damaged lines and refusals."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from mmsa.errors import UserError
from mmsa.evaluation.inputs.ledger import read_ledger, record_opening

NOON = "2024-05-01T12:00:00Z"


def opened(directory: Path, weights: str = "w1", split: str = "test") -> int:
    return record_opening(
        directory, split=split, weights_sha256=weights, shards_digest="d1", when=NOON
    )


def test_openings_are_counted_for_all_weights(tmp_path: Path) -> None:
    assert read_ledger(tmp_path).num_openings == 0
    assert [opened(tmp_path), opened(tmp_path), opened(tmp_path, "w2")] == [1, 2, 3]
    ledger = read_ledger(tmp_path)
    assert (ledger.num_openings, ledger.num_damaged) == (3, 0)
    assert ledger.openings[2] == {
        "when": NOON,
        "split": "test",
        "weights_sha256": "w2",
        "shards_digest": "d1",
    }


def test_openings_are_counted_for_each_packed_data_set(tmp_path: Path) -> None:
    counts = [
        record_opening(tmp_path, split="test", weights_sha256="w", shards_digest=digest)
        for digest in ("d1", "d2", "d1")
    ]
    assert counts == [1, 1, 2]
    assert read_ledger(tmp_path).num_openings == 3
    with (tmp_path / "test_ledger.jsonl").open("a") as ledger:
        ledger.write("damaged\n")  # perhaps an opening of either
    assert [read_ledger(tmp_path).openings_of(digest) for digest in ("d1", "d2")] == [3, 2]


def test_other_splits_are_not_recorded(tmp_path: Path) -> None:
    assert opened(tmp_path, split="val") == 0
    assert list(tmp_path.iterdir()) == []
    assert opened(tmp_path) == 1
    assert opened(tmp_path, split="train") == 1
    assert read_ledger(tmp_path).num_openings == 1


def test_the_time_is_utc(tmp_path: Path) -> None:
    for wrong in ("2024-05-01T12:00:00", "2024-05-01T12:00:00+02:00", "noon"):
        with pytest.raises(ValueError):
            record_opening(
                tmp_path, split="test", weights_sha256="w", shards_digest="d", when=wrong
            )
    assert list(tmp_path.iterdir()) == []
    record_opening(tmp_path, split="test", weights_sha256="w", shards_digest="d")
    assert read_ledger(tmp_path).openings[0]["when"].endswith("+00:00")


def test_a_torn_last_line_counts_and_does_not_damage_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(tmp_path)
    path = tmp_path / "test_ledger.jsonl"
    whole = path.read_bytes()
    torn = whole + whole[:40]
    path.write_bytes(torn)
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path, "w3") == 3
    assert "1 damaged line(s), the first is line 2" in caplog.text
    ledger = read_ledger(tmp_path)
    assert [opening["weights_sha256"] for opening in ledger.openings] == ["w1", "w3"]
    assert ledger.num_damaged == 1
    assert path.read_bytes().startswith(torn + b"\n")  # only ever appended to


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"7", b'{"split": "test"}', b"x" * 9000])
def test_any_damaged_line_counts_as_an_opening(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "test_ledger.jsonl").write_bytes(b"\n" + line + b"\n\n")
    assert opened(tmp_path) == 2


def test_an_opening_that_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the test split was not opened.*Make the directory"):
        opened(tmp_path / "missing")
    (tmp_path / "test_ledger.jsonl").mkdir()
    with pytest.raises(UserError, match="the test split was not opened"):
        opened(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_refuses_the_opening(tmp_path: Path) -> None:
    (tmp_path / "test_ledger.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device"):
        opened(tmp_path)


OPENER = """
import sys
sys.path[:0] = {path!r}
from mmsa.evaluation.inputs.ledger import record_opening
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    print(record_opening({directory!r}, split="test", weights_sha256={name!r}, shards_digest="d"))
"""


def test_concurrent_processes_get_each_number_once(tmp_path: Path) -> None:
    openers = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                OPENER.format(path=sys.path, directory=str(tmp_path), name=name),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("w1", "w2")
    ]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("go\n")
        opener.stdin.flush()
    numbers = [int(n) for opener in openers for n in opener.communicate(timeout=60)[0].split()]
    assert [opener.returncode for opener in openers] == [0, 0]
    assert sorted(numbers) == list(range(1, 201))
    ledger = read_ledger(tmp_path)
    assert (ledger.num_openings, ledger.num_damaged) == (200, 0)
    weights = [opening["weights_sha256"] for opening in ledger.openings]
    assert sorted(weights) == ["w1"] * 100 + ["w2"] * 100
