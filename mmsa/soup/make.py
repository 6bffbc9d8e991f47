"""Making a soup: score the ingredients on validation, choose, average, write an export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mmsa.calibration import FITTED_ON, described
from mmsa.data.batch_requests import EvaluationRequests, TrainRequests
from mmsa.data.loading.workers import start_forkserver
from mmsa.data.plan import BatchPlan, batch_plan
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Batch, Loader
from mmsa.engines.cpu_lanes import fix_threads
from mmsa.engines.engine import make_accelerator
from mmsa.engines.gpu_supply import loader_workers
from mmsa.engines.gpu_texts import text_layout
from mmsa.evaluation.predict import predict_split
from mmsa.evaluation.scores.calibration import fit
from mmsa.evaluation.scores.metrics import (
    Predictions,
    compute_metrics,
    flat_metrics,
    rounded,
    selection_value,
)
from mmsa.export import load_tokenizer_of, untrained_model, write_export
from mmsa.foundation.new_directory import check_free, new_directory
from mmsa.lineage import HISTORY_KEY, SOUP_KEY, history_of, merged_history
from mmsa.models.model import SentimentModel
from mmsa.process.runtime import logger, world_from_environment
from mmsa.soup.choice import Choice, by_score, greedy, uniform
from mmsa.soup.ingredients import Ingredient, open_ingredients, select_by
from mmsa.soup.mixing import layers_with_other_statistics, mean_of, recompute_statistics
from mmsa.soup.summary import soup_text

_STATISTICS_SAMPLES = 10_000  # of the training split, at most: the mean of more changes nothing
_LEAST_BATCH = 2  # of them, whatever eval.batch_size: one row alone has no variance


def make_soup(
    paths: Sequence[Path],
    *,
    output: Path | None,
    kind: str,
    metric: str | None,
    shards: str | None,
    num_workers: int | None,
) -> str:
    """Write the soup of the exports at `paths` to `output`; returns what was done, as text.

    `kind` is "greedy" or "uniform"; the rest is as on the command line. Only the training split
    (for BatchNorm) and the validation split are read. Raises `UserError`.
    """
    ingredients = open_ingredients(paths, shards)
    name = select_by(ingredients, metric)
    out = _free_directory(output, ingredients)
    kitchen = Kitchen(ingredients, name, num_workers)
    values = [kitchen.value_of([i]) for i in range(len(ingredients))]
    order = by_score(values, [one.weights_sha256 for one in ingredients])
    if kind == "greedy":
        choice = greedy(order, values, kitchen.value_of)
    else:
        choice = uniform(order, kitchen.value_of)
    facts = kitchen.facts(kind, values, order, choice)
    _write(out, kitchen, choice, facts)
    return soup_text(facts[SOUP_KEY], out)


class Kitchen:
    """One model in memory that takes the mean of any ingredients, and scores it on validation."""

    def __init__(
        self, ingredients: Sequence[Ingredient], metric: str, num_workers: int | None
    ) -> None:
        self.ingredients, self.metric = ingredients, metric
        self.target = ingredients[0].target
        export = self.target.export
        self._lanes = fix_threads(export.config.eval.cpu_threads)
        asked = export.config.data.num_workers if num_workers is None else num_workers
        workers = loader_workers(asked, world_from_environment())
        self._num_workers = workers
        if workers:
            start_forkserver()
        self.tokenizer = load_tokenizer_of(export)
        self.model: SentimentModel = untrained_model(export)
        self._train = SplitReader(
            *(self.target.shards, self.target.manifest, "train"),
            export.class_map(self.target.manifest.classes),
        )
        self.layers = layers_with_other_statistics(
            self.model, [self._statistics(one) for one in ingredients]
        )
        requests = EvaluationRequests(self.target.reader, self.target.batch_size, 1, 0, repeat=True)
        self._num_batches, self._batches = len(requests), self._loader(requests)
        self.accelerator: Accelerator = make_accelerator("no")
        self.model.to(self.accelerator.device)
        self._last: tuple[list[int], Predictions] | None = None

    def value_of(self, chosen: Sequence[int]) -> float:
        """The score of the mean of the `chosen` ingredients on validation; more is better."""
        return selection_value(compute_metrics(self.predictions(chosen)), self.metric)

    def predictions(self, chosen: Sequence[int]) -> Predictions:
        """Validation predictions of the mean of `chosen`, which the model then holds."""
        if self._last is not None and self._last[0] == list(chosen):
            return self._last[1]
        names = [self.ingredients[i].name for i in chosen]
        logger.info("scoring %s", names[0] if len(names) == 1 else f"the mean of {names}")
        self.model.load_state_dict(mean_of(self.ingredients[i].state() for i in chosen))
        if len(chosen) > 1 and self.layers:
            recompute_statistics(
                *(self.model, self.layers, self._training_batches()),
                num_batches=self._num_statistics_batches(),
                device=self.accelerator.device,
            )
        predictions, _ = predict_split(
            self.model,
            self._batches,
            self._num_batches,
            accelerator=self.accelerator,
            label_names=self.target.export.label_names,
            num_samples=len(self.target.reader),
            progress="validating",
            lanes=self._lanes,
        )
        self._last = (list(chosen), predictions)
        return predictions

    def facts(
        self, kind: str, values: Sequence[float], order: Sequence[int], choice: Choice
    ) -> dict[str, Any]:
        """The facts of the soup's export."""
        predictions = self.predictions(choice.chosen)
        tried = {trial.ingredient: trial for trial in choice.trials}
        entries = {}
        for i in order:
            entries[i] = self.ingredients[i].described(abs(values[i]))
            if i in tried:
                entries[i]["score_of_mean_with_it"] = abs(tried[i].value)
        exports = [self.ingredients[i].target.export for i in choice.chosen]
        history = merged_history([history_of(export.facts) for export in exports])
        soup = {
            "kind": kind,
            "metric": self.metric,
            "score": flat_metrics(compute_metrics(predictions))[self.metric],
            "selected_on": FITTED_ON,
            "num_validation_samples": len(predictions.keys),
            # Of the choice; its result is scored again where the last one tried was left out.
            "validations": len(values) + len(choice.trials) if kind == "greedy" else 0,
            "batch_norm_samples": self._num_statistics_samples() if self.layers else 0,
            "ingredients": [entries[i] for i in choice.chosen],
            "left_out": [entries[i] for i in order if i not in choice.chosen],
        }
        manifest = self.target.manifest
        return {
            "step": None,
            "dataset": manifest.dataset,
            "shards_digest": manifest.digest,
            "protocol": manifest.protocol.model_dump(mode="json"),
            "mixed_precision": exports[0].facts.get("mixed_precision"),
            **({HISTORY_KEY: history} if history else {}),
            SOUP_KEY: rounded(soup),
        }

    def _statistics(self, ingredient: Ingredient) -> Mapping[str, Tensor]:
        """The buffers of an ingredient, small enough to hold those of all."""
        state, buffers = ingredient.state(), dict(self.model.named_buffers())
        return {name: tensor.clone() for name, tensor in state.items() if name in buffers}

    def _statistics_plan(self) -> BatchPlan:
        size = min(max(self.target.batch_size, _LEAST_BATCH), len(self._train))
        return batch_plan(
            len(self._train), global_batch_size=size, micro_batch_size=size, world_size=1
        )

    def _num_statistics_batches(self) -> int:
        plan = self._statistics_plan()
        return min(plan.steps_per_epoch, -(-_STATISTICS_SAMPLES // plan.global_batch_size))

    def _training_batches(self) -> Iterator[Batch]:
        """Batches of training samples in the order of the first epoch, without augmentation."""
        config = self.target.export.config
        requests = TrainRequests(
            reader=self._train,
            plan=self._statistics_plan(),
            rank=0,
            seed=config.run.seed,
            window_shards=config.data.window_shards,
            bucket_by_length=False,
            start_step=0,
            stop_step=self._num_statistics_batches(),
        )
        return self._loader(requests)

    def _num_statistics_samples(self) -> int:
        return self._num_statistics_batches() * self._statistics_plan().global_batch_size

    def _loader(self, requests: EvaluationRequests | TrainRequests) -> Iterator[Batch]:
        layout = text_layout(self.model, self.target.export.config.gpu)
        return Loader(
            requests,
            self.target.export.preprocessing,
            self.tokenizer,
            self._num_workers,
            pin_memory=torch.cuda.is_available(),
            timeout_s=self.target.export.config.data.timeout_s,
            layout=layout,
        )


def _free_directory(output: Path | None, ingredients: Sequence[Ingredient]) -> Path:
    """Where the soup goes; `UserError` if something is there already."""
    if output is None:
        homes = [one.target.source.home.resolve().parent for one in ingredients]
        output = Path(os.path.commonpath(homes)) / "soup"
    check_free(output, "--output")
    return output


def _write(out: Path, kitchen: Kitchen, choice: Choice, facts: Mapping[str, Any]) -> None:
    """Write the export whole or not at all. The model holds the soup, its last predictions too."""
    predictions = kitchen.predictions(choice.chosen)
    export = kitchen.ingredients[choice.chosen[0]].target.export
    data = export.config.data.model_copy(update={"shards": kitchen.target.shards})
    fitted = fit(predictions, split=FITTED_ON, shards_digest=kitchen.target.manifest.digest)
    if fitted.temperature is None:
        logger.warning("%s", described(fitted))
    with new_directory(out) as temporary:
        write_export(
            temporary,
            kitchen.model,
            kitchen.model.state_dict(),
            statistics={},
            config=export.config.model_copy(update={"data": data}),
            label_names=export.label_names,
            preprocessing=export.preprocessing,
            tokenizer=kitchen.tokenizer,
            facts=facts,
            calibration=fitted,
        )
