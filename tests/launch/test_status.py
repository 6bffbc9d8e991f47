"""`python -m launch status`: one run in detail, several as a table, and files with odd content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.__main__ import main as launch_main
from launch.job_log import record_job
from launch.site import ROOT

VALIDATION = {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7, "weighted_f1": 0.74}


@pytest.fixture(autouse=True)
def without_slurm_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("COLUMNS", "80")


def make_run(directory: Path, state: str, *, reason: str = "") -> Path:
    directory.mkdir(parents=True)
    status = {"state": state, "reason": reason, "step": 120, "num_steps": 500}
    (directory / "status.json").write_text(json.dumps(status))
    train = {"kind": "train", "step": 120, "loss": 0.6931, "samples_per_s": 123.4}
    lines = [train, {"kind": "validation", "step": 100, **VALIDATION}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "config.yaml").write_text("train: {global_batch_size: 32}\n")
    return directory


def test_several_runs_are_a_table_of_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "a-folder-with-a-long-name" / "runs"
    make_run(base / "seed-0-of-a-rather-long-name", "running")
    make_run(base / "seed-1", "done")
    make_run(base / "seed-2", "failed", reason="the disk is full\nsecond line")
    (base / "notes.txt").write_text("")
    (base / "empty").mkdir()
    record_job(base / "seed-3" / "slurm", "17", kind="train", log="x.log")
    targets = sorted(map(str, base.iterdir()))
    assert launch_main(["status", *targets]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"in {base}:"
    table = said[1 : said.index("seed-2: failed (the disk is full")]
    assert max(map(len, table)) <= 80
    assert table[0].split() == [
        "run",
        "state",
        "step",
        "loss",
        "val.",
        "F1",
        "time",
        "left",
        "idle",
    ]
    rows = {line.split()[0]: line.split()[1:] for line in table[2:]}
    assert rows["seed-1"] == ["done", "120/500", "0.6931", "0.7400"]
    assert rows["seed-2"][:3] == ["failed", "120/500", "0.6931"]
    assert rows["seed-3"] == ["not", "started"]
    running = next(row for row in rows.values() if row[:1] == ["running"])
    assert running[1:5] == ["120/500", "0.6931", "0.7400", "0:01:39"]
    assert said[-1] == f"not runs: {base}/empty, {base}/notes.txt"
    assert launch_main(["status", "--json", *targets]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in facts] == ["running", "done", "failed", None]
    # One run keeps its page, and no run at all is an error.
    assert launch_main(["status", str(base / "seed-1")]) == 0
    assert "state       done\nstep        120 of 500\n" in capsys.readouterr().out
    assert launch_main(["status", str(base / "empty"), str(base / "notes.txt")]) == 2
    assert "is a run; give run directories" in capsys.readouterr().err


ODD = ["[]", "7", '"job"', "null", "{}", "{", "[" * 100_000, "\udcff", '{"kind": ["train"]}']
ODD += ['{"kind": "train", "step": "3"}', '{"kind": "train", "step": 3, "loss": "x"}']
ODD += [
    '{"kind": "validation", "step": 3, "loss": NaN}',
    '{"state": [1], "step": [], "reason": {}}',
]
ODD += ['{"job": 1, "kind": 2, "log": 3}', '{"state": "running", "step": "x", "num_steps": "y"}']


@pytest.mark.parametrize(
    "name", ["status.json", "metrics.jsonl", "config.yaml", "slurm/jobs.jsonl"]
)
@pytest.mark.parametrize("odd", ODD, ids=lambda text: text[:20].encode("ascii", "replace").decode())
def test_odd_content_is_unknown_and_no_traceback(
    name: str, odd: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path / "run", "running")
    record_job(run_dir / "slurm", "17", kind="train", log="x.log")
    with open(
        run_dir / name, "w" if name == "status.json" else "a", errors="surrogateescape"
    ) as file:
        file.write(odd + "\n")
    assert launch_main(["status", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"run         {run_dir}\n")


def test_the_root_is_not_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_main(["status", str(ROOT)]) == 2
    assert (
        "is not a run: it has neither a status.json that can be read nor" in capsys.readouterr().err
    )
