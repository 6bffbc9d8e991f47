"""Small things to save, looks at what was saved, and a write that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from mmsa.engines.weight_average import WeightAverage
from mmsa.training.checkpoints.checkpoint import save_checkpoint
from mmsa.training.checkpoints.collective_write import REMOVAL_THREAD


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with BatchNorm and an optimizer that has made two steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def write_weights(directory: Path, weights: Mapping[str, Tensor]) -> None:
    """A writer like the real one: a new directory, weights, a file in a folder of its own."""
    (directory / "tokenizer").mkdir(parents=True)
    save_file(dict(weights), str(directory / "model.safetensors"))
    (directory / "tokenizer" / "words.txt").write_text("the\n")


def save(
    run_dir: Path,
    step: int,
    accelerator: Accelerator,
    *,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    write_export: Callable[..., None] = write_weights,
    run_config: str = "run: {}\n",
    average: WeightAverage | None = None,
) -> Path:
    fresh_model, fresh_optimizer = trained()
    model = model or fresh_model
    return save_checkpoint(
        run_dir,
        step,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer or fresh_optimizer,
        average=average,
        write_export=write_export,
        state={"step": step, "best_value": 0.5, "world_size": 1, "best_step": 1},
        run_config=run_config,
    )


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def names(directory: Path) -> list[str]:
    """What is there once threads that remove something have done so."""
    for thread in threading.enumerate():
        if thread.name == REMOVAL_THREAD:
            thread.join()
    return sorted(path.name for path in directory.iterdir())


def raise_os_error(directory: Path, *_: object) -> None:
    directory.mkdir(parents=True)
    (directory / "labels.json").write_text("{}")
    raise OSError(28, "No space left on device")
