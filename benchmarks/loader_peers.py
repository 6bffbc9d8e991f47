"""Other loaders of the same samples, for loader.py: the seed-style one and the peers.

Peers get the JPEGs of our shards in the format that they document, and decode with our function.
They crop and flip with torchvision's transforms, tokenize with Hugging Face's batch call and stack,
as their users do; or they use our functions for all of it, so that only reading differs. Each is
iterated in one process, one whole shuffled pass at a time, in batches of 32.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.loader_setup import BATCH_SIZE, MAX_TOKENS, SHORT_SIDE_PX, Setup

SHUFFLE_BUFFER = 1000  # samples, as in webdataset's and datasets' own examples
# name: module to import, package to install
PEERS = {
    "webdataset": ("webdataset", "webdataset"),
    "datasets, webdataset": ("datasets", "datasets"),
    "datasets, parquet": ("datasets", "datasets"),
    "litdata": ("litdata", "litdata"),
    "MosaicML streaming": ("streaming", "mosaicml-streaming"),
}
Batches = Callable[[], Iterator[Any]]


@dataclass
class Finish:
    """From the images and texts that a peer has read to a batch."""

    setup: Setup

    def __post_init__(self) -> None:
        from torchvision.transforms import v2

        self.numbers = count()
        image = self.setup.preprocessing.image
        assert image is not None
        side = round(SHORT_SIDE_PX * image.image_size_px / image.resize_px)
        self.transform = v2.Compose(
            [
                v2.RandomCrop(side, pad_if_needed=True),
                *([v2.Resize(image.image_size_px)] if side != image.image_size_px else []),
                v2.RandomHorizontalFlip(self.setup.augmentation.flip_probability),
            ]
        )

    def batch(self, contents: Iterable[bytes], texts: list[str], labels: list[int]) -> Any:
        """Decode with our function; do the rest as users of a peer do, or with our functions."""
        import torch

        from mmsa.data.decoding import image_views

        if self.setup.finish_by_ours:
            ids, mask = self.setup.tokenizer(texts)
            views = (self.view(image) for image in contents)
            pixels = image_views.stacked(views, len(texts), self.setup.preprocessing)
        else:
            tokens = self.setup.tokenizer.hugging_face(
                texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            pixels = torch.stack([self.transform(image_views.decode(image)) for image in contents])
        return {
            "images": pixels,
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor(labels),
        }

    def view(self, image: bytes) -> Any:
        from mmsa.data.decoding import image_views

        return image_views.training_view(
            image_views.decode(image),
            self.setup.preprocessing,
            seed=0,
            epoch=0,
            sample=next(self.numbers),
            min_crop_scale=self.setup.augmentation.min_crop_scale,
            flip_probability=self.setup.augmentation.flip_probability,
        )

    def rows(self, rows: list[dict[str, Any]]) -> Any:
        """A batch of rows with `image`, `text` and `label`."""
        contents = [row["image"] for row in rows]
        return self.batch(
            contents, [row["text"] for row in rows], [int(row["label"]) for row in rows]
        )


def seed_style(setup: Setup) -> Batches:
    """One file per sample: Pillow, resized to 224, float32, normalised; the tokenizer called once
    per sample and padded to 128; torch's DataLoader."""
    import torch
    from PIL import Image
    from torchvision import transforms

    from mmsa.preprocessing import IMAGENET_MEAN, IMAGENET_STD

    tokenizer = setup.tokenizer.hugging_face
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    class Files(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(setup.raw_samples)

        def __getitem__(self, row: int) -> Any:
            path, label = setup.raw_samples[row]
            text = path.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
            encoding = tokenizer(
                text,
                padding="max_length",
                max_length=MAX_TOKENS,
                truncation=True,
                return_tensors="pt",
            )
            return {
                "images": transform(Image.open(path).convert("RGB")),
                "input_ids": encoding["input_ids"].squeeze(0),
                "attention_mask": encoding["attention_mask"].squeeze(0),
                "labels": label,
            }

    loader = torch.utils.data.DataLoader(Files(), batch_size=BATCH_SIZE, shuffle=True)
    return lambda: iter(loader)


def webdataset(setup: Setup, scratch: Path) -> Batches:
    """Its own pipeline over our tars; decodes before batching, as its examples do."""
    import webdataset as wds

    finish = Finish(setup)

    def collate(samples: list[tuple[bytes, str, str]]) -> Any:
        contents, texts, metas = zip(*samples, strict=True)
        labels = [setup.class_names.index(json.loads(meta)["label"]) for meta in metas]
        return finish.batch(contents, [text.decode() for text in texts], labels)

    dataset = (
        wds.WebDataset(setup.tars, shardshuffle=len(setup.tars), seed=0)
        .shuffle(SHUFFLE_BUFFER)
        .to_tuple("jpg", "txt", "json")
        .batched(BATCH_SIZE, collation_fn=collate)
    )
    return lambda: iter(dataset)


def datasets_webdataset(setup: Setup, scratch: Path) -> Batches:
    """`load_dataset("webdataset", streaming=True)` over our tars, images not decoded by it."""
    import datasets

    stream = datasets.load_dataset(
        "webdataset",
        data_files={"train": setup.tars},
        split="train",
        streaming=True,
        cache_dir=str(scratch),
    )
    stream = stream.cast_column("jpg", datasets.Image(decode=False))
    stream = stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    finish = Finish(setup)

    def batches() -> Iterator[Any]:
        for batch in stream.iter(batch_size=BATCH_SIZE):
            labels = [setup.class_names.index(meta["label"]) for meta in batch["json"]]
            yield finish.batch((image["bytes"] for image in batch["jpg"]), batch["txt"], labels)

    return batches


def datasets_parquet(setup: Setup, scratch: Path) -> Batches:
    """`load_dataset("parquet", streaming=True)`, row groups of 100 as its documentation advises
    for images."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"image": s.image, "text": s.text, "label": s.label} for s in setup.samples]
    size = -(-len(rows) // len(setup.tars))
    files = []
    for number in range(len(setup.tars)):
        files.append(str(scratch / f"{number:05d}.parquet"))
        part = rows[number * size : (number + 1) * size]
        parquet.write_table(pa.Table.from_pylist(part), files[-1], row_group_size=100)
    stream = datasets.load_dataset(
        "parquet",
        data_files={"train": files},
        split="train",
        streaming=True,
        cache_dir=str(scratch / "cache"),
    )
    stream = stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
    finish = Finish(setup)

    def batches() -> Iterator[Any]:
        for batch in stream.iter(batch_size=BATCH_SIZE):
            yield finish.batch(batch["image"], batch["text"], batch["label"])

    return batches


def litdata(setup: Setup, scratch: Path) -> Batches:
    """`optimize` to chunks of 64 MB, `StreamingDataset` with its `StreamingDataLoader`."""
    import litdata as ld

    def row(number: int) -> dict[str, Any]:
        sample = setup.samples[number]
        return {"image": sample.image, "text": sample.text, "label": sample.label}

    ld.optimize(
        fn=row,
        inputs=list(range(len(setup.samples))),
        output_dir=str(scratch / "chunks"),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
        verbose=False,
    )
    dataset = ld.StreamingDataset(str(scratch / "chunks"), shuffle=True)
    finish = Finish(setup)
    loader = ld.StreamingDataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=0, collate_fn=finish.rows
    )
    return lambda: iter(loader)


def mosaicml(setup: Setup, scratch: Path) -> Batches:
    """`MDSWriter`, `StreamingDataset` with torch's DataLoader."""
    import torch
    from streaming import MDSWriter, StreamingDataset

    columns = {"image": "bytes", "text": "str", "label": "int"}
    with MDSWriter(out=str(scratch / "mds"), columns=columns) as writer:
        for sample in setup.samples:
            writer.write({"image": sample.image, "text": sample.text, "label": sample.label})
    dataset = StreamingDataset(local=str(scratch / "mds"), shuffle=True, batch_size=BATCH_SIZE)
    finish = Finish(setup)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=0, collate_fn=finish.rows
    )
    return lambda: iter(loader)


_MAKERS: dict[str, Callable[[Setup, Path], Batches]] = {
    "webdataset": webdataset,
    "datasets, webdataset": datasets_webdataset,
    "datasets, parquet": datasets_parquet,
    "litdata": litdata,
    "MosaicML streaming": mosaicml,
}


def missing() -> dict[str, str]:
    """The peers that are not installed, and the package that each needs."""
    return {
        name: package
        for name, (module, package) in PEERS.items()
        if importlib.util.find_spec(module) is None
    }


def peers(setup: Setup, scratch: Path) -> dict[str, Batches]:
    """The installed peers, with their data in `scratch`."""
    absent = missing()
    made = {}
    for number, (name, maker) in enumerate(_MAKERS.items()):
        if name not in absent:
            folder = scratch / str(number)
            folder.mkdir()
            made[name] = maker(setup, folder)
    return made
