"""What a prediction begins with: the command's options, the model in memory, its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsa.data.loading.workers import start_forkserver
from mmsa.data.manifest import load_manifest
from mmsa.data.shard_cache import use_cache_of_export
from mmsa.engines.gpu_supply import loader_workers
from mmsa.errors import UserError
from mmsa.evaluation.inputs import ledger
from mmsa.export import Export, load_model, load_tokenizer_of, read_export
from mmsa.export_target import Target, read_export_whole
from mmsa.prediction.inputs.folder import FolderRows
from mmsa.prediction.inputs.shards import ShardRows
from mmsa.prediction.inputs.source import Needs, Source
from mmsa.prediction.inputs.table import TableRows, check_table
from mmsa.process.runtime import World

if TYPE_CHECKING:
    from mmsa.data.text import TextTokenizer
    from mmsa.models.model import SentimentModel

_MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Options:
    """What the command line says, but for EXPORT."""

    input: Path | str  # a URL is text
    out: Path
    text_column: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    encoding: str | None = None
    split: str | None = None
    batch_size: int | None = None
    num_workers: int | None = None
    precision: str = "no"
    calibrated: bool = True
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Opened:
    """A model in memory with its input."""

    target: Target
    export: Export
    model: SentimentModel
    tokenizer: TextTokenizer | None
    source: Source

    def batch_size(self, options: Options) -> int:
        """Rows of a forward pass."""
        return options.batch_size or self.export.config.eval.batch_size


def open_all(export: Path, options: Options, world: World) -> Opened:
    """The model and the input. Raises `UserError` where one cannot be used."""
    if isinstance(options.input, Path):
        check_table(options.input)

    def read(target: Target) -> tuple[Export, SentimentModel, TextTokenizer | None, Source]:
        found = read_export(target.directory)
        source = open_source(found, options)  # a wrong column is told before the model is loaded
        if num_loader_workers(found, options, world):
            start_forkserver()  # imports for the loader processes meanwhile
        model = load_model(found)
        assert found.weights_sha256  # of these files, and kept
        return found, model, load_tokenizer_of(found), source

    target, opened = read_export_whole(export, "best", read)
    return Opened(target, *opened)


def open_source(export: Export, options: Options) -> Source:
    """The input of `options` for the model of `export`. Raises `UserError`."""
    path, needs, preprocessing = options.input, Needs.of(export), export.preprocessing
    dataset = str(export.facts.get("dataset") or "input")
    if isinstance(path, Path) and not path.is_dir():
        return TableRows(
            path,
            needs,
            preprocessing,
            dataset=dataset,
            encoding=options.encoding,
            text_column=options.text_column,
            image_column=options.image_column,
            id_column=options.id_column,
        )
    if isinstance(path, Path) and not (path / _MANIFEST_NAME).is_file():
        return FolderRows(path, needs, preprocessing, dataset=dataset, encoding=options.encoding)
    use_cache_of_export(export.config.data)
    manifest = load_manifest(str(path))
    split = options.split or _usual_split(list(manifest.splits))
    if split not in manifest.splits:
        raise UserError(
            f"the shards {path} have no split '{split}'; choose one with --split: "
            f"{', '.join(manifest.splits)}"
        )
    return ShardRows(path, manifest, split, export)


def _usual_split(splits: list[str]) -> str:
    """As in an evaluation; the only one of shards that have one."""
    return splits[0] if len(splits) == 1 else ledger.TEST_SPLIT


def num_loader_workers(export: Export, options: Options, world: World) -> int:
    """Loader processes of each process."""
    if options.num_workers is not None:
        return options.num_workers
    return loader_workers(export.config.data.num_workers, world)
