"""What a run writes while it trains: `metrics.jsonl`, trackers, the progress bar or log lines.

Main rank only; on the others a `Tracker` does nothing. Times are seconds, throughput is samples per
second over all ranks.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmsa.config import Config
from mmsa.data.manifest import MODALITIES
from mmsa.errors import UserError
from mmsa.foundation.atomic_write import write_file
from mmsa.foundation.held_directory import HeldDirectory
from mmsa.foundation.parsing import parse_json
from mmsa.process.runtime import SHOWN_BY_A_BAR
from mmsa.training.checkpoints.disk_space import not_written, taken_away
from mmsa.training.trackers import TRACKERS, RunTracker, TrackedRun

logger = logging.getLogger("mmsa")

METRICS_NAME = "metrics.jsonl"


class Tracker:
    """Writes the measures of training and validation of one run."""

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int,
        num_steps: int,
        enabled: bool,
        samples_per_step: int,
        config: Config | None = None,
    ) -> None:
        """Removes what an interrupted launch wrote past `start_step`, the checkpoint's step.

        `config` (default: all defaults) names the trackers, in `run.trackers`.
        """
        self._enabled = enabled
        self._num_steps = num_steps
        self._samples_per_step = samples_per_step
        self._last = (time.perf_counter(), start_step)
        self.latest: dict[str, Any] = {"num_steps": num_steps}  # for status.json
        if not enabled:
            return
        config = config or Config()
        self._file = run_dir / METRICS_NAME
        self._folder = HeldDirectory(run_dir)
        with self._writing():
            cut_back(self._file, start_step)
            run = TrackedRun(run_dir, start_step, config)
            self._trackers = {name: _started(name, run) for name in config.run.trackers}
        self._bar = tqdm(
            total=num_steps,
            initial=start_step,
            desc="training",
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def advance(self) -> None:
        """One optimizer step is done."""
        if self._enabled:
            self._bar.update(1)

    def train(
        self,
        step: int,
        *,
        loss: float,
        rates: Mapping[str, float],
        grad_norm: float,
        ended: float | None = None,
        of_fusion: Mapping[str, float] | None = None,
    ) -> None:
        """Training measures of step `step`; `loss` is the mean over the global batch.

        `of_fusion` are the measures of the fusion head, also means. `ended` is the
        `time.perf_counter()` of its end (default: now).
        """
        if not self._enabled:
            return
        now, (then, last_step) = ended or time.perf_counter(), self._last
        self._last = (now, step)
        samples_per_s = (step - last_step) * self._samples_per_step / max(now - then, 1e-9)
        measures = {
            "loss": loss,
            "grad_norm": grad_norm,
            "samples_per_s": samples_per_s,
            **{f"lr_{part}": rate for part, rate in rates.items()},
            **{f"fusion_{name}": value for name, value in (of_fusion or {}).items()},
        }
        self._write({"kind": "train", "step": step, **measures})
        self.latest |= {"samples_per_s": round(samples_per_s, 1), "loss": loss}
        self._show({f"train/{name}": value for name, value in measures.items()}, step)
        logger.info(
            "step %d/%d  loss %.4f  %.1f samples/s",
            *(step, self._num_steps, loss, samples_per_s),
            extra={} if self._bar.disable else SHOWN_BY_A_BAR,
        )
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{loss:.4f}")

    def skipped(self, step: int, *, loss: float, grad_norm: float, keys: Sequence[str]) -> None:
        """A step whose loss or gradient was not finite: it has not changed the weights."""
        if not self._enabled:
            return
        # JSON has no word for them.
        measures = {"loss": str(loss), "grad_norm": str(grad_norm)}
        self._write({"kind": "skipped", "step": step, **measures, "keys": list(keys)})
        self.latest["skipped_steps"] = self.latest.get("skipped_steps", 0) + 1
        logger.warning(
            "step %d has not changed the weights: loss %s, gradient norm %s; its samples: %s",
            *(step, loss, grad_norm, few(keys)),
        )

    def validation(self, step: int, epoch: float, metrics: Mapping[str, Any]) -> None:
        """Validation measures after step `step`."""
        if not self._enabled:
            return
        self._write({"kind": "validation", "step": step, "epoch": round(epoch, 4), **metrics})
        self.latest["validation"] = {
            "step": step,
            **{name: value for name, value in metrics.items() if "/" not in name},
        }
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self._show({f"validation/{name}": value for name, value in numbers.items()}, step)
        logger.info(
            "validation after step %d (epoch %.2f)  loss %.4f  accuracy %.4f  macro F1 %.4f  "
            "weighted F1 %.4f",
            step,
            epoch,
            metrics["loss"],
            metrics["accuracy"],
            metrics["macro_f1"],
            metrics["weighted_f1"],
        )
        for name in MODALITIES:
            if f"auxiliary_{name}_accuracy" in metrics:
                logger.info(
                    "  auxiliary head of the %s, on its own label: accuracy %.4f  weighted F1 %.4f",
                    name,
                    metrics[f"auxiliary_{name}_accuracy"],
                    metrics[f"auxiliary_{name}_weighted_f1"],
                )
        self._last = (time.perf_counter(), step)  # validation is not training time

    def close(self) -> None:
        if self._enabled:
            self._bar.close()
            with self._writing():
                for name in list(self._trackers):
                    self._ask(name, lambda tracker: tracker.close())

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._writing(), open(self._file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _show(self, measures: Mapping[str, float], step: int) -> None:
        """Pass measures to the trackers. TensorBoard's thread raises its errors in a later call."""
        with self._writing():
            for name in list(self._trackers):
                self._ask(name, lambda tracker: tracker.log(measures, step))

    def _ask(self, name: str, call: Callable[[RunTracker], None]) -> None:
        """Call a tracker. One whose service fails is left out from then on; the run continues."""
        try:
            call(self._trackers[name])
        except Exception as error:
            if isinstance(error, UserError) or _is_of_the_system(error):
                raise
            del self._trackers[name]
            logger.warning(
                "the tracker %s failed and gets no more measures (%s: %s)",
                *(name, type(error).__name__, error),
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._folder.was_taken_away():
            raise UserError(taken_away(self._folder.path))
        try:
            yield
        except OSError as error:
            what = f"a line of {METRICS_NAME} or a tracker's file"
            raise UserError(not_written(what, self._folder.path, error)) from None


def _started(name: str, run: TrackedRun) -> RunTracker:
    """The tracker `name`; `UserError` where it cannot start."""
    try:
        return TRACKERS[name](run)
    except Exception as error:
        if isinstance(error, UserError) or _is_of_the_system(error):
            raise
        raise UserError(
            f"run.trackers: {name} cannot start ({type(error).__name__}: {error}). Set it up as "
            f"its documentation says, or take {name} out of run.trackers"
        ) from error


def _is_of_the_system(error: Exception) -> bool:
    """Whether this is an error of files, such as a full disk, and not of a service (no number)."""
    return isinstance(error, OSError) and error.errno is not None


def cut_back(file: Path, step: int) -> None:
    """Remove the lines of `metrics.jsonl` that are past `step`, and a torn last line."""
    if not file.exists():
        return
    kept, odd = [], 0
    # Lines are ASCII; what a crash left after them need not be.
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        found = step_of(line)
        if found is None:
            # Cut off by a kill, its step is past the last whole checkpoint; or written by others.
            odd += bool(line.strip())
        elif found <= step:
            kept.append(line)
    if odd > 1:  # a kill cuts off one
        logger.warning("removed %d lines of %s that are not measures of a step", odd, file)
    write_file(file, "".join(line + "\n" for line in kept), durable=False)


def step_of(line: str | bytes) -> int | None:
    """The step of a line of `metrics.jsonl`; None where it is not one."""
    try:
        content = parse_json(line)
    except ValueError:
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return step if isinstance(step, int) else None


def few(keys: Sequence[str]) -> str:
    """Some of a step's keys, for the log; `metrics.jsonl` has them all."""
    more = f" and {len(keys) - 5} more ({METRICS_NAME})" if len(keys) > 5 else ""
    return " ".join(keys[:5]) + more
