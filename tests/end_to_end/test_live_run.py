"""Reading a run that is still training: whatever moves in between, it is one model that is read."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TINY, launched
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from live_run import LiveRun, check_report, last_report, step_of

import mmsa
from evaluate import main as evaluate_main
from mmsa.config import ModelConfig
from mmsa.errors import UserError
from mmsa.evaluation.inputs.eval_target import Request, open_target
from mmsa.evaluation.one_model import open_model
from mmsa.export_target import Target, read_export_whole, resolve_export
from mmsa.training.model_parts import with_real_directories
from train import main as train_main

FEW = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Openings of a file of the run, counted, before which the run goes on by a step.
MOMENTS = st.sets(st.integers(1, 24), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    words = [*TINY, f"data.shards={shards}", f"run.dir={run_dir}", "train.max_steps=2"]
    assert train_main(words) == 0
    return run_dir


@pytest.fixture
def live(trained: Path, tmp_path: Path) -> LiveRun:
    run = LiveRun(tmp_path / "live", trained)
    run.advance()
    return run


@given(moments=MOMENTS, checkpoint=st.sampled_from(["best", "last"]))
@FEW
def test_what_is_opened_is_one_export_whenever_the_run_replaces_it(
    live: LiveRun, moments: set[int], checkpoint: str
) -> None:
    request = Request(live.directory, checkpoint, None, "test", None)
    before = live.step
    with live.advancing_at(moments):
        target = open_target(request)
        live.advance()  # between the two openings, always
        opened = open_model(target)
    for found in (target, opened.target):
        assert found.export.weights_sha256 == live.weights_sha256[found.export.facts["step"]]
        assert found.export.directory == found.source.directory
        assert not found.source.directory.is_symlink()
    assert step_of(opened.model) == opened.target.export.facts["step"] > before


@given(moments=MOMENTS)
@FEW
def test_a_predictor_is_of_one_export(live: LiveRun, moments: set[int]) -> None:
    with live.advancing_at(moments):
        predictor = mmsa.load(live.directory, device="cpu")
    export = predictor.export
    assert export.calibration is not None
    step = step_of(predictor._rows.model)
    assert (step, 1.0 + step / 1000) == (export.facts["step"], export.calibration.temperature)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_report_is_of_one_export(
    live: LiveRun, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(live.directory), "--checkpoint", checkpoint, "--no-floors", "--no-page"]
    with live.advancing_at({5, 12, 17}):
        assert evaluate_main(arguments) == 0, capsys.readouterr().err
    report = last_report(live.directory)
    step = check_report(report, live.directory)
    assert step > 1
    assert report.name == ("test-best" if checkpoint == "best" else f"test-step-{step:08d}")
    assert f"report in {report}" in capsys.readouterr().out


def test_an_export_that_vanishes_at_each_attempt_is_a_sentence(tmp_path: Path) -> None:
    steps = iter(range(100))

    def go_on(found: Target | None = None) -> None:
        export = tmp_path / "exports" / f"step-{next(steps)}"
        export.mkdir(parents=True)
        (export / "export.json").touch()
        (tmp_path / "best").unlink(missing_ok=True)
        (tmp_path / "best").symlink_to(export)
        if found is not None:
            shutil.rmtree(found.directory)

    (tmp_path / "config.yaml").touch()
    go_on()
    with pytest.raises(UserError, match=r"removed the export 'best' 30 times.*Repeat the command"):
        read_export_whole(tmp_path, "best", go_on)
    assert next(steps) == 31


def test_a_temperature_is_not_written_where_its_export_was(
    live: LiveRun, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(live.directory), "--split", "val", "--calibrate", "--no-floors", "--no-page"]
    request = Request(live.directory, "best", None, "val", None)
    export = resolve_export(live.directory).directory
    with live.advancing_at(set()) as openings:
        open_model(open_target(request))
    # The next file of the run to be opened after those of the model is calibration.json.
    with live.advancing_at({openings[0] + 1}):
        assert evaluate_main(arguments) == 2
    assert f"{export} was removed by its run" in capsys.readouterr().err
    assert not export.exists()


def test_a_damaged_export_that_stays_is_an_error_at_once(
    live: LiveRun, capsys: pytest.CaptureFixture[str]
) -> None:
    export = resolve_export(live.directory).directory
    (export / "labels.json").write_text("no labels")
    with live.advancing_at(set()) as openings:
        assert evaluate_main([str(live.directory)]) == 2
    assert "is damaged: labels.json" in capsys.readouterr().err
    assert openings[0] < 10


def test_weights_that_begin_a_run_are_of_one_export(live: LiveRun) -> None:
    best = live.directory / "best"
    given = ModelConfig.model_validate({"text_encoder": {"weights": str(best)}})
    fixed = with_real_directories(given)
    assert Path(fixed.text_encoder.weights) == best.resolve()
    assert not Path(fixed.text_encoder.weights).is_symlink()
    assert fixed.image_encoder == given.image_encoder


def test_a_copy_without_links_is_evaluated(trained: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trained, tmp_path / "copy")  # follows links
    assert not (copy / "best").is_symlink()
    assert resolve_export(copy).directory == copy / "best"


@pytest.fixture
def training(live: LiveRun) -> Iterator[LiveRun]:
    """The run goes on all the time, in a thread."""
    ended = threading.Event()

    def train() -> None:
        while not ended.wait(0.5):
            live.advance()

    thread = threading.Thread(target=train)
    thread.start()
    yield live
    ended.set()
    thread.join()


def test_two_ranks_have_the_model_of_the_report(training: LiveRun) -> None:
    late = ["--import", "tests.end_to_end.late_reader"]
    words = [str(training.directory), "--checkpoint", "last", "--no-floors", "--no-page", *late]
    ended = launched("evaluate.py", *words, LIVE_RUN=str(training.directory))
    assert ended.returncode == 0, ended.stderr
    assert "ranks had opened different exports" in ended.stdout
    report = last_report(training.directory)
    assert report.name == f"test-step-{check_report(report, training.directory):08d}"
