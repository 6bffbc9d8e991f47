"""The input of loader.py and its peers: one packed set, its original files, one tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH_SIZE, MAX_TOKENS, SHORT_SIDE_PX = 32, 128, 256
_WORDS = 8000  # vocabulary learned from the texts if no tokenizer is given


@dataclass
class Setup:
    """The training split of the shards in `directory`, packed from `raw` (MVSA-Single's layout).

    `resize_px` is the encoder's short side before the crop: 256 crops 224 pixels from an image
    packed at 256 without resizing, 232 (ResNet-50's newer weights) crops 247 and resizes them.
    """

    raw: Path
    directory: Path
    resize_px: int = 256
    tokenizer_name: str | None = None
    finish_by_ours: bool = False  # peers use our functions for all but reading
    samples: list[Any] = field(init=False, repr=False)  # RawSample, all of the split
    raw_samples: list[tuple[Path, int]] = field(init=False, repr=False)  # image, label

    def __post_init__(self) -> None:
        from mmsa.data.read_and_decode import Augmentation
        from mmsa.preprocessing import ImagePreprocessing, Preprocessing

        self.reader = self.opened()
        shards = self.reader.shards
        self.tars = [str(self.directory / shards.tar(row)) for row in range(len(shards))]
        read = (self.reader.read(*place) for place in self.reader.places())
        self.samples = [sample._replace(image=bytes(sample.image)) for sample in read]
        self.raw_samples = [
            (self.raw / "data" / f"{sample.meta['source_id']}.jpg", sample.label)
            for sample in self.samples
        ]
        self.tokenizer = self.made_tokenizer()
        image = ImagePreprocessing(resize_px=self.resize_px)
        self.preprocessing = Preprocessing(image=image, max_tokens=MAX_TOKENS)
        self.augmentation = Augmentation(seed=0, min_crop_scale=1.0, flip_probability=0.5)

    def opened(self) -> Any:
        """A new reader of the split."""
        from mmsa.data.manifest import load_manifest
        from mmsa.data.reader import SplitReader
        from mmsa.labels import class_map

        manifest = load_manifest(self.directory)
        self.class_names = list(manifest.classes)
        return SplitReader(self.directory, manifest, "train", class_map(manifest.classes, None))

    def made_tokenizer(self) -> Any:
        """The named tokenizer, or a WordPiece tokenizer like BERT's, learned from the texts."""
        from mmsa.data.text import TextTokenizer, load_tokenizer

        if self.tokenizer_name:
            return load_tokenizer(self.tokenizer_name, MAX_TOKENS)
        from tokenizers.implementations import BertWordPieceTokenizer
        from transformers import PreTrainedTokenizerFast

        pieces = BertWordPieceTokenizer()
        texts = [sample.text for sample in self.samples]
        pieces.train_from_iterator(texts, vocab_size=_WORDS, show_progress=False)
        roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=pieces._tokenizer,
            **{f"{role}_token": token for role, token in roles.items()},
        )
        return TextTokenizer(tokenizer, MAX_TOKENS)

    def requests(self, num_epochs: int, reader: Any = None) -> Any:
        """Training requests of whole epochs, bucketed by length as in training."""
        from mmsa.data.batch_requests import TrainRequests
        from mmsa.data.plan import batch_plan

        reader = reader or self.reader
        plan = batch_plan(
            len(reader),
            global_batch_size=BATCH_SIZE,
            micro_batch_size=BATCH_SIZE,
            world_size=1,
            drop_last=False,
        )
        last_step = num_epochs * plan.steps_per_epoch
        return TrainRequests(reader, plan, 0, 0, 16, True, 0, last_step)

    def loader(self, requests: Any, num_workers: int = 0) -> Any:
        """Our loader, as training creates it."""
        from mmsa.data.stream import Loader

        return Loader(requests, self.preprocessing, self.tokenizer, num_workers, self.augmentation)
