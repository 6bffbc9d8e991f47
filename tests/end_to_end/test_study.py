"""Real studies: killed and resumed, a refused variant, folds, a search, test opened once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from harness import ROOT, TINY, status

from launch.__main__ import main as launch_main
from mmsa.config import load_config

TIMEOUT_S = 600


def study_file(tmp_path: Path, **content: object) -> Path:
    base = tmp_path / "base.yaml"
    base.write_text("run: {log_every_steps: 1}\n")
    file = tmp_path / "study.yaml"
    settings = [*TINY, "train.max_steps=2", "train.validate_every_steps=2"]
    content = {"base": str(base), "settings": settings, **content}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def command(file: Path, out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "launch", "study", str(file), "--out", str(out), *words]


def ended(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_killed_study_goes_on_and_tells_what_was_refused(tmp_path: Path, shards: Path) -> None:
    file = study_file(
        tmp_path,
        variants={
            "text": ["model.fusion.name=text_only"],
            "both": [],
            "wrong": ["train.global_batch_size=10"],  # no multiple of the micro-batch
        },
    )
    out, data = tmp_path / "out", ["--", f"data.shards={shards}"]
    words = command(file, out, *data)
    with (tmp_path / "driver.txt").open("w") as told:
        driver = subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=told)
    first = out / "runs" / "text" / "seed-0"
    second = out / "runs" / "both" / "seed-0"
    deadline = time.monotonic() + TIMEOUT_S
    while not (second / "config.yaml").exists():
        assert driver.poll() is None, (tmp_path / "driver.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = (first / "best" / "model.safetensors").stat().st_mtime_ns

    again = ended(words)
    assert again.returncode == 1, again.stdout + again.stderr  # one variant was refused
    assert "3 of 3" not in again.stdout
    assert "weighted_f1 on validation, 2 of 3 runs" in again.stdout
    assert "train.global_batch_size=10 does not divide" in again.stdout
    assert (first / "best" / "model.safetensors").stat().st_mtime_ns == before
    assert status(second)["state"] == "done"
    answer = json.loads((out / "study.json").read_text())
    assert {one["name"] for one in answer["variants"] if one["is_whole"]} == {"text", "both"}
    assert [one["variant"] for one in answer["differences"]] == ["both"]
    best = load_config(str(out / "best.yaml"))
    assert best.run.dir is None
    assert best.model.fusion.name in ("text_only", "concat")
    assert not list(out.glob("runs/*/*/reports/test*"))

    third = ended(words)  # nothing to do, and the refused one is not tried again
    assert "trains" not in third.stdout
    assert "not tried again" in third.stdout
    for given in (data, []):  # it knows the settings that it was begun with
        refused = ended(command(file, out, "--final", *given))
        assert refused.returncode == 2
        assert "1 of 3 runs are not done" in refused.stderr
    told = ended(command(file, out, "--status"))
    assert told.returncode == 0, told.stderr
    assert "weighted_f1 on validation, 2 of 3 runs" in told.stdout
    other = ended(command(file, out))
    assert other.returncode == 2
    assert f"The command line had {data[-1]}, and now has no settings. Repeat" in other.stderr


@pytest.mark.timeout(TIMEOUT_S)
def test_folds_are_packed_trained_and_pooled_on_test(tmp_path: Path, raw_synthetic: Path) -> None:
    folds = {"source": "synthetic", "raw": str(raw_synthetic), "protocol": "kfold:3"}
    file = study_file(
        tmp_path,
        variants={"text": ["model.fusion.name=text_only"]},
        folds=folds,
    )
    out = tmp_path / "out"
    done = ended(command(file, out, "--parallel", "2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weighted_f1 on validation, 3 of 3 runs" in done.stdout
    assert not list(out.glob("runs/*/*/reports/test*"))
    final = ended(command(file, out, "--final"))
    assert final.returncode == 0, final.stdout + final.stderr
    found = json.loads((out / "final.json").read_text())
    assert found["chosen"] == ["text"]
    manifests = [
        json.loads((out / f"shards/fold-{k}/manifest.json").read_text()) for k in (1, 2, 3)
    ]
    tested = sum(one["splits"]["test"]["num_samples"] for one in manifests)
    assert found["comparison"]["num_samples"] == tested
    text = (out / "study.html").read_text()
    assert 'id="test"' in text
    changed = ended(command(file, out, "--final", "--", "optim.text_lr=2e-3"))
    assert changed.returncode == 2
    assert "have changed since" in changed.stderr


# One choice would train for ever: pruning alone ends it.
SEARCH = {
    "trials": 2,
    "seed": 4,  # draws the good choice first
    "sampler": "random",
    "pruner": {"name": "median", "n_startup_trials": 1},
    "space": {
        "optim.head_lr": {"categorical": [1e-3, 10.0]},
        "train.max_steps": {"int": [3, 4], "when": {"optim.head_lr": 1e-3}},
    },
}


@pytest.mark.timeout(TIMEOUT_S)
def test_a_search_prunes_what_is_hopeless(
    tmp_path: Path, shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [*TINY, "train.validate_every_steps=1", "train.max_steps=9999", "train.epochs=9999"]
    settings += ["train.select_by=loss", "optim.schedule=constant", "optim.warmup_steps=0"]
    file = study_file(tmp_path, settings=settings, metric="loss", search=SEARCH)
    out = tmp_path / "out"
    code = launch_main(["study", str(file), "--out", str(out), "--", f"data.shards={shards}"])
    said = capfd.readouterr().out
    assert code == 0, said
    good, bad = (out / "search" / f"trial-000{number}" for number in (0, 1))
    assert status(good / "run")["state"] == "done"
    assert (good / "run" / "best" / "model.safetensors").exists()
    assert not (good / "run" / "checkpoints").exists()
    result = json.loads((bad / "result.json").read_text())
    assert result["state"] == "pruned", said
    assert not (bad / "run" / "best").exists()
    assert not (bad / "run" / "checkpoints").exists()
    assert status(bad / "run")["state"] == "preempted"  # by the ordinary stop
    assert "2 of 2 trials have ended (1 complete, 1 pruned)" in said
    found = json.loads((out / "study.json").read_text())["search"]
    assert (found["best"], found["counts"]) == ("trial-0000", {"complete": 1, "pruned": 1})
    best = load_config(str(out / "best.yaml"))
    assert best.optim.head_lr == 1e-3
    assert best.train.max_steps in (3, 4)
    assert 'id="history"' in (out / "study.html").read_text()
    assert not list(out.glob("search/*/run/reports/test*"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_best_of_twelve_trials_are_confirmed_after_kills(tmp_path: Path, shards: Path) -> None:
    search = {
        "trials": 12,
        "space": {"optim.text_lr": {"float": [1e-5, 1e-1], "log": True}},
        "pruner": "asha",
        "confirm": {"best": 2, "seeds": [1, 2]},
    }
    settings = [*TINY, "train.max_steps=6", "train.validate_every_steps=2"]
    file = study_file(tmp_path, settings=settings, search=search)
    out = tmp_path / "out"
    words = command(file, out, "--parallel", "2", "--", f"data.shards={shards}")
    for count in (2, 7):  # killed in the middle of its runs
        driver = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(out.glob("search/*/run/config.yaml"))) < count:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("search/*/result.json")}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 trials have ended" in done.stdout
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    found = json.loads((out / "study.json").read_text())
    names = [one["name"] for one in found["variants"]]
    assert len(names) == 3
    assert "default" in names
    assert {run["seed"] for one in found["variants"] for run in one["runs"]} == {1, 2}
    assert len(found["differences"]) == 2
    assert found["best"] in names
    final = ended(command(file, out, "--final", "--", f"data.shards={shards}"))
    assert final.returncode == 0, final.stdout + final.stderr
    assert found["best"] in json.loads((out / "final.json").read_text())["chosen"]


@pytest.fixture
def raw_synthetic(tmp_path: Path) -> Path:
    words = [sys.executable, "-m", "shards", "synthetic", str(tmp_path / "raw"), "--samples", "120"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return tmp_path / "raw"
