"""One prediction: from INPUT to OUT, by all processes of a launch.

Each process computes its pieces and keeps them in a folder; when all are done, the main process
reads INPUT once more and writes each row with its result. Nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmsa.calibration import temperature_of
from mmsa.data.stream import Batch
from mmsa.engines import engine
from mmsa.engines.cpu_lanes import fix_threads, in_lanes
from mmsa.engines.gpu_texts import text_layout
from mmsa.errors import AgreedError, UserError
from mmsa.evaluation.inputs import ledger
from mmsa.evaluation.one_model import main_rank_does
from mmsa.evaluation.predict import inputs_of, to_device
from mmsa.evaluation.scores.metrics import probabilities
from mmsa.export import Export
from mmsa.prediction.batches import PieceName
from mmsa.prediction.inputs.shards import ShardRows
from mmsa.prediction.inputs.source import Source
from mmsa.prediction.loader import BatchStream, batches
from mmsa.prediction.opened import Opened, Options, num_loader_workers
from mmsa.prediction.outputs import Columns, writer_for
from mmsa.prediction.pieces import Pieces, Results
from mmsa.process.progress import Progress
from mmsa.process.runtime import World

if TYPE_CHECKING:
    from accelerate import Accelerator


def predict(opened: Opened, options: Options, accelerator: Accelerator, world: World) -> str:
    """Predict all rows and write OUT; returns the summary. A collective of all processes."""
    pieces = Pieces(options.out)
    try:
        return _predict(opened, options, pieces, accelerator, world)
    finally:
        pieces.release()


def _predict(
    opened: Opened, options: Options, pieces: Pieces, accelerator: Accelerator, world: World
) -> str:
    # Reads a table to its end: one that is damaged is refused before anything is computed.
    total = main_rank_does(accelerator, lambda: len(opened.source))
    settings = {**_settings(opened, options), "device": accelerator.device.type}
    main_rank_does(accelerator, lambda: _begin(opened, pieces, settings, options))
    done = main_rank_does(accelerator, pieces.done)
    _agree(accelerator, settings)
    stream = BatchStream(
        opened.source, opened.export.preprocessing, opened.tokenizer,
        opened.batch_size(options), done, world.rank, world.world_size,
        layout=text_layout(opened.model, opened.export.config.gpu),
    )  # fmt: skip
    timeout_s = opened.export.config.data.timeout_s
    loaded = batches(stream, num_loader_workers(opened.export, options, world), timeout_s=timeout_s)
    _compute(opened, loaded, pieces, accelerator, _bar(total, options, world))
    accelerator.wait_for_everyone()
    return main_rank_does(accelerator, lambda: _finish(opened, pieces, options))


def _settings(opened: Opened, options: Options) -> dict[str, Any]:
    """What the results depend on. Also whether two processes would compute the same."""
    return {
        "model": opened.export.weights_sha256,
        "batch_size": opened.batch_size(options),
        "precision": options.precision,
        "input": opened.source.identity(),
    }


def _begin(opened: Opened, pieces: Pieces, settings: Mapping[str, Any], options: Options) -> None:
    pieces.begin(settings, resume=options.resume, overwrite=options.overwrite)
    source = opened.source
    if isinstance(source, ShardRows) and source.reader.split == ledger.TEST_SPLIT:
        ledger.record_opening(
            opened.target.make_home(),
            split=ledger.TEST_SPLIT,
            weights_sha256=opened.export.weights_sha256,
            shards_digest=source.manifest_digest,
        )


def _agree(accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
    from accelerate.utils import gather_object

    if any(one != settings for one in gather_object([dict(settings)])):
        raise AgreedError(
            "the processes found different models or inputs, because a run or another program is "
            "replacing them; repeat the command, with a copy of the export"
        )


def _bar(num_rows: int, options: Options, world: World) -> Progress:
    quiet = options.quiet or not world.is_main_process
    total = -(-num_rows // world.world_size)
    return Progress(total=total, what="predicting", quiet=quiet, unit="rows")


def _compute(
    opened: Opened,
    loaded: Iterator[Batch],
    pieces: Pieces,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Compute the batches of this process, and keep every piece as soon as it is whole."""
    # As in an evaluation: the order of additions depends on the threads.
    lanes = fix_threads(opened.export.config.eval.cpu_threads)
    model = opened.model.to(accelerator.device).eval()

    def logits_of(model: nn.Module, host_batch: Batch) -> torch.Tensor | None:
        if not host_batch["rows"]:
            return None
        batch = to_device(host_batch, accelerator.device)
        with engine.autocast(accelerator):
            output = model(*inputs_of(batch))
        return output[: len(host_batch["rows"])].float()

    results, on_device = Results(), []
    computed = in_lanes(model, loaded, logits_of, lanes=lanes)
    with progress as bar, closing(computed):
        for host_batch, logits in computed:
            rows = host_batch["rows"]
            if logits is not None:
                on_device.append(logits)
            results.rows += rows
            results.errors |= host_batch["errors"]
            results.cells |= host_batch["cells"]
            if host_batch["is_last"]:
                results.logits = [one.cpu().numpy() for one in on_device]
                _refuse_nonfinite(opened.export, results)
                pieces.write(host_batch["piece"], results)
                results, on_device = Results(), []
            bar.advance(len(rows))


def _refuse_nonfinite(export: Export, results: Results) -> None:
    broken = ~np.isfinite(results.all_logits).all(axis=1)
    for row in np.array(results.rows, dtype=np.int64)[broken].tolist():
        if row not in results.errors:
            raise UserError(
                f"the model in {export.directory} gives logits that are not finite, for row {row} "
                "for example. It has diverged or its weights are damaged: use the export of an "
                "earlier checkpoint"
            )


def _finish(opened: Opened, pieces: Pieces, options: Options) -> str:
    """Write OUT from the pieces, remove these; returns the summary."""
    columns = Columns(opened.source.columns, opened.export.label_names)
    calibration = opened.export.calibration if options.calibrated else None
    temperature = temperature_of(calibration)
    total, failed, first = 0, 0, ""
    with writer_for(options.out, columns, opened.source.arrow_fields()) as writer:
        for cells, probs, error in _joined(opened.source, pieces, temperature):
            if probs is None:
                failed, first = failed + 1, first or f"row {total + 1}: {error}"
                writer.write(columns.failed(cells, error))
            else:
                writer.write(columns.predicted(cells, probs))
            total += 1
    pieces.remove()
    said = f"{total - failed:,} of {total:,} rows predicted, in {options.out}"
    return f"{said}; {failed:,} with an error, the first: {first}" if failed else said


def _joined(
    source: Source, pieces: Pieces, temperature: float
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.float64] | None, str]]:
    """(cells, probabilities (C,) or None, error) of each row of the input, in order."""
    by_window: dict[int, list[PieceName]] = {}
    for name in sorted(pieces.done()):
        by_window.setdefault(name.window, []).append(name)
    all_cells, first = source.cells(), 0
    for names in by_window.values():
        results = pieces.read(names)
        probs = probabilities(results.all_logits, temperature) if results.rows else None
        places = {row: place for place, row in enumerate(results.rows)}
        num_rows = len(places.keys() | results.errors.keys())
        for row in range(first, first + num_rows):
            cells = next(all_cells, _END)
            # It may repeat a name of a file that is not Unicode.
            error = results.errors.get(row, "").encode("utf-8", "backslashreplace").decode("utf-8")
            if cells is _END or not (error or row in places):
                raise _changed(source)
            shown = results.cells.get(row, {}) if cells is None else cells
            yield shown, None if error or probs is None else probs[places[row]], error
        first += num_rows
    if next(all_cells, _END) is not _END:
        raise _changed(source)


_END: Mapping[str, Any] = {}  # no more cells


def _changed(source: Source) -> UserError:
    return UserError(f"{source.path} changed while it was predicted; begin again with --overwrite")
