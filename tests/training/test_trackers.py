"""Trackers: what TensorBoard, wandb and MLflow are shown, and what a failing one does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mmsa.config import Config, RunConfig, load_config
from mmsa.errors import UserError
from mmsa.training.trackers import (
    TRACKERS,
    RunTracker,
    TrackedRun,
    register_tracker,
    tracker_problems,
)
from mmsa.training.tracking import METRICS_NAME, Tracker


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = dict(TRACKERS)
    yield
    TRACKERS.clear()
    TRACKERS.update(before)


def shown(run_dir: Path, *names: str, start_step: int, steps: tuple[int, ...]) -> None:
    """One launch that logs the loss `step / 2` at each of `steps`."""
    config = Config(run=RunConfig(dir=str(run_dir), trackers=names))
    one = Tracker(
        run_dir,
        start_step=start_step,
        num_steps=10,
        enabled=True,
        samples_per_step=8,
        config=config,
    )
    for step in steps:
        one.train(step, loss=step / 2, rates={"text": 0.25}, grad_norm=1.0)
    one.close()


def test_tensorboard_has_tags_and_steps_and_is_purged_on_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown(tmp_path, "tensorboard", start_step=0, steps=(1, 2, 3, 4))
    shown(tmp_path, "tensorboard", start_step=2, steps=(3,))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = ("loss", "grad_norm", "samples_per_s", "lr_text")
    assert events.Tags()["scalars"] == [f"train/{name}" for name in names]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (1, 0.5),
        (2, 1.0),
        (3, 1.5),
    ]
    assert not (tmp_path / "trackers.json").exists()


def test_without_trackers_metrics_are_written(tmp_path: Path) -> None:
    shown(tmp_path, start_step=0, steps=(1,))
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_wandb_offline(
    tmp_path: Path, package: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    shown(tmp_path, "wandb", start_step=0, steps=(1, 2))
    shown(tmp_path, "wandb", start_step=1, steps=(2, 3))
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert len(files) == 2  # one for each launch, of the same run
    assert all(file.stat().st_size for file in files)


def test_mlflow_in_a_directory(
    tmp_path: Path, package: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package("mlflow")
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    shown(run_dir, "mlflow", start_step=0, steps=(1, 2))
    shown(run_dir, "mlflow", start_step=2, steps=(3,))
    run_id = json.loads((run_dir / "trackers.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    run = client.get_run(run_id)
    assert run.data.params["optim.text_lr"] == "2e-05"
    assert run.info.run_name == "run"


class Failing(RunTracker):
    def log(self, measures: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no answer")


def test_a_service_that_fails_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register_tracker("failing")(Failing)
    shown(tmp_path, "failing", "tensorboard", start_step=0, steps=(1, 2))
    assert caplog.text.count("the tracker failing failed and gets no more measures") == 1
    assert len((tmp_path / METRICS_NAME).read_text().splitlines()) == 2


def test_a_tracker_that_cannot_start_ends_the_run(tmp_path: Path) -> None:
    @register_tracker("broken")
    class Broken(RunTracker):
        def __init__(self, run: TrackedRun) -> None:
            raise ValueError("not logged in")

    with pytest.raises(UserError, match=r"broken cannot start \(ValueError: not logged in\)"):
        shown(tmp_path, "broken", start_step=0, steps=())


def test_unknown_trackers_and_missing_packages_are_reported() -> None:
    @register_tracker("mine")
    class Mine(RunTracker):
        package = "no_such_package"

    with pytest.raises(UserError) as raised:
        load_config(None, ["run.trackers=[tensorbord, mine]"], checks=[tracker_problems])
    message = str(raised.value)
    assert "run.trackers: 'tensorbord' is not a tracker; did you mean tensorboard?" in message
    assert "mine needs the package no_such_package, which is not installed; pip install" in message
    with pytest.raises(UserError, match="registered twice"):
        register_tracker("tensorboard")(Mine)


def test_the_default_trackers_are_left_out_of_the_yaml() -> None:
    assert "trackers" not in Config().to_yaml()
    config = Config(run=RunConfig(trackers=("mlflow",)))
    assert "trackers:\n  - mlflow\n" in config.to_yaml()
