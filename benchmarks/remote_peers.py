"""Other streams from the server of remote.py: webdataset, Hugging Face datasets, litdata, MosaicML.

webdataset and datasets read the same tars by their URLs. litdata and MosaicML streaming have
formats of their own, written before from the same samples in pieces of the size of our tars; they
read them as from S3: the server answers GET, HEAD and ranges of objects as S3 does, and checks
no signature. Each resumes by its own state where it has one; one without reads from the beginning.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BATCH_SIZE, SHUFFLE_BUFFER = 32, 1000
BUCKET = "bucket"  # the folder of the server that peers take for an S3 bucket
Batches = Callable[[int], Iterator[int]]  # first batch, -1 for the middle -> samples of each


@dataclass
class Peer:
    """`module` of the pip package `package`. `write` makes its format; `read` iterates it."""

    module: str
    package: str
    read: Callable[[Source, Path], Batches]
    write: Callable[[Source, Path], None] | None = None


@dataclass
class Source:
    """Our set in the folder `shards`, at the server `url`, and what a peer keeps for its resume."""

    shards: Path
    url: str = ""
    state: dict[str, Any] = field(default_factory=dict)

    def tars(self) -> tuple[list[str], int]:
        """The URLs of the training split's tars, and its samples."""
        split = self._split()
        return [f"{self.url}/{BUCKET}/set/{shard.tar}" for shard in split.shards], split.num_samples

    def piece_bytes(self) -> int:
        split = self._split()
        return sum(shard.tar_bytes for shard in split.shards) // len(split.shards)

    def _split(self) -> Any:
        from mmsa.data.manifest import load_manifest

        return load_manifest(self.shards).splits["train"]

    def samples(self) -> Iterator[dict[str, Any]]:
        from mmsa.data.manifest import load_manifest
        from mmsa.data.reader import SplitReader
        from mmsa.labels import class_map

        manifest = load_manifest(self.shards)
        reader = SplitReader(self.shards, manifest, "train", class_map(manifest.classes, None))
        for place in reader.places():
            one = reader.read(*place)
            yield {"image": bytes(one.image), "text": one.text, "label": one.label}


def decoded(contents: Iterator[Any]) -> int:
    """Decode every image; returns how many."""
    from mmsa.data.decoding import image_views

    return sum(image_views.decode(content) is not None for content in contents)


def read_through(
    batches: Iterable[list[Any]], samples: int, note: Callable[[int], None] | None
) -> Iterator[int]:
    """Decode the images of each batch, and count them. Up to the middle of the `samples` of an
    epoch `note` is called with how many were read, to keep the state that a resume begins with."""
    seen = 0
    for images in batches:
        seen += len(images)
        yield decoded(iter(images))
        if note is not None and seen <= samples // 2:
            note(seen)


def webdataset(source: Source, scratch: Path) -> Batches:
    """Its own pipeline over the same tars by their URLs, shuffled as its examples do."""
    import webdataset as wds

    def batches(first: int) -> Iterator[int]:
        places, samples = source.tars()
        dataset = (
            wds.WebDataset(places, shardshuffle=len(places), seed=0)
            .shuffle(SHUFFLE_BUFFER)
            .to_tuple("jpg", "txt", "json")
            .batched(BATCH_SIZE, collation_fn=list)
        )
        seen = 0
        for rows in dataset:
            seen += len(rows)
            if not first or seen > samples // 2:
                yield decoded(row[0] for row in rows)

    return batches


def hugging_face(source: Source, scratch: Path) -> Batches:
    """`load_dataset("webdataset", streaming=True)` over the same URLs; its `state_dict`."""
    import datasets

    def batches(first: int) -> Iterator[int]:
        places, samples = source.tars()
        stream = datasets.load_dataset(
            "webdataset",
            data_files={"train": places},
            split="train",
            streaming=True,
            cache_dir=str(scratch),
        )
        stream = stream.cast_column("jpg", datasets.Image(decode=False))
        stream = stream.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
        if first:
            stream.load_state_dict(source.state["datasets"])

        def note(seen: int) -> None:
            source.state["datasets"] = stream.state_dict()

        images = ([one["bytes"] for one in b["jpg"]] for b in stream.iter(batch_size=BATCH_SIZE))
        yield from read_through(images, samples, None if first else note)

    return batches


def write_litdata(source: Source, out: Path) -> None:
    import litdata as ld

    rows = list(source.samples())
    ld.optimize(
        fn=rows.__getitem__,
        inputs=list(range(len(rows))),
        output_dir=str(out),
        chunk_bytes=source.piece_bytes(),
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def litdata(source: Source, scratch: Path) -> Batches:
    """`StreamingDataset` with its `StreamingDataLoader`, shuffled; its `state_dict`."""
    import litdata as ld
    from litdata.streaming import downloader

    # Its client takes https alone, which no setting of it changes.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"

    def batches(first: int) -> Iterator[int]:
        _, samples = source.tars()
        dataset = ld.StreamingDataset(
            f"s3://{BUCKET}/litdata",
            cache_dir=str(scratch / "cache"),
            shuffle=True,
            force_override_state_dict=bool(first),  # the cache is another folder
        )
        loader = ld.StreamingDataLoader(
            dataset, batch_size=BATCH_SIZE, num_workers=0, collate_fn=list
        )
        if first:
            loader.load_state_dict(source.state["litdata"])

        def note(seen: int) -> None:
            source.state["litdata"] = json.loads(json.dumps(loader.state_dict()))

        images = ([row["image"] for row in rows] for rows in loader)
        yield from read_through(images, samples, None if first else note)

    return batches


def write_mds(source: Source, out: Path) -> None:
    from streaming import MDSWriter

    columns = {"image": "bytes", "text": "str", "label": "int"}
    with MDSWriter(out=str(out), columns=columns, size_limit=source.piece_bytes()) as writer:
        for row in source.samples():
            writer.write(row)


def mosaicml(source: Source, scratch: Path) -> Batches:
    """`StreamingDataset` with its `StreamingDataLoader`, shuffled; its `state_dict`."""
    from streaming import StreamingDataLoader, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    def batches(first: int) -> Iterator[int]:
        clean_stale_shared_memory()
        _, samples = source.tars()
        dataset = StreamingDataset(
            remote=f"s3://{BUCKET}/mds",
            local=str(scratch / "mds"),
            shuffle=True,
            batch_size=BATCH_SIZE,
        )
        loader = StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=0, collate_fn=list)
        if first:
            dataset.load_state_dict(source.state["mds"])

        def note(seen: int) -> None:
            # The loader counts the columns of a row where a batch is a list of rows.
            source.state["mds"] = dataset.state_dict(seen, from_beginning=True)

        images = ([row["image"] for row in rows] for rows in loader)
        yield from read_through(images, samples, None if first else note)

    return batches


PEERS = {
    "webdataset, HTTP": Peer("webdataset", "webdataset", webdataset),
    "datasets, HTTP": Peer("datasets", "datasets", hugging_face),
    "litdata, S3": Peer("litdata", "litdata", litdata, write_litdata),
    "MosaicML streaming, S3": Peer("streaming", "mosaicml-streaming", mosaicml, write_mds),
}
FOLDERS = {"litdata, S3": "litdata", "MosaicML streaming, S3": "mds"}


def installed() -> dict[str, Peer]:
    """The peers that are installed; the others are named in a line each."""
    found = {}
    for name, peer in PEERS.items():
        if importlib.util.find_spec(peer.module) is None:
            print(f"{name} is left out: pip install {peer.package}")
        else:
            found[name] = peer
    return found


def use_as_s3(url: str) -> None:
    """Let the S3 clients of this process speak with the server."""
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
