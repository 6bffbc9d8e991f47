"""What a report costs without the model: CPU seconds by part of the real `evaluate.py`.

    python -m benchmarks.report [--samples N] [--json FILE]

Packs a made-up set (N test samples, 0.8 N training texts to fit the floors on), trains the demo's
tiny model for one step and evaluates it, with made-up predictions in place of its forward passes.
CPU time, not wall time, including everything that the report imports and reads.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import machine, write_json
from mmsa.labels import LABEL_NAMES

NUM_WORDS = 20_000
OWN_WORDS = 400  # of each class, so that the texts can be learnt from
OWN_SHARE = 0.12
NUM_VAL = 400

# Part of a report -> the functions, as `mmsa.evaluation.split_evaluation` calls them, that make it.
PARTS = {
    "facts of the samples, from the shards": ("read_facts",),
    "classification report": ("classification_report_text",),
    "floors, with reading their texts": ("read_texts", "fit_floors"),
    "scores, intervals, leaks, slices": ("seen_before", "compute_findings"),
    "page": ("cards", "read_training", "render"),
    "predictions file, plot, other files": ("rows_of", "files.write_report"),
}


def texts(number: int, labels: np.ndarray, random: np.random.Generator) -> Iterator[str]:
    """Texts of 6 to 20 words out of 20,000 by Zipf's law, some of them specific to the class."""
    shares = 1 / (np.arange(NUM_WORDS) + 5.0)
    limits = np.cumsum(shares / shares.sum())
    for row in range(number):
        length = int(random.integers(6, 21))
        words = np.minimum(np.searchsorted(limits, random.random(length)), NUM_WORDS - 1)
        own = random.random(length) < OWN_SHARE
        words[own] = NUM_WORDS + labels[row] * OWN_WORDS + random.integers(0, OWN_WORDS, own.sum())
        further = ["@someone"] * (row % 3 == 0) + ["http://t.co/made-up"] * (row % 5 < 2)
        yield " ".join([*(f"w{word}" for word in words.tolist()), *further])


def pack(directory: Path, sizes: dict[str, int]) -> None:
    """A packed set of made-up samples; some are duplicates, within a split or across splits."""
    from mmsa.data.index_file import key_hash
    from mmsa.data.manifest import Manifest, ProtocolInfo, SplitInfo, write_manifest
    from shards.packing.tars import PackedSample, write_shard
    from shards.synthetic.images import make_image

    random = np.random.default_rng(0)
    images = [make_image(("positive", "negative")[i % 2], random) for i in range(64)]
    directory.mkdir()
    splits = {}
    for split, number in sizes.items():
        labels = random.choice(len(LABEL_NAMES), number, p=[0.35, 0.25, 0.4])
        samples = []
        for row, text in enumerate(texts(number, labels, random)):
            key = f"made-up-{split}-{row}"
            twin = row % 20 == 0
            facts = {"width": 256 + row % 90, "height": (200, 256, 340)[row % 3]}
            facts["text_label"] = LABEL_NAMES[labels[row]]
            facts["image_label"] = LABEL_NAMES[(labels[row] + (row % 3 == 0)) % 3]
            group = key_hash(f"made-up-{row // 2}" if twin else key)
            samples.append(
                PackedSample(key, LABEL_NAMES[labels[row]], group, text, images[row % 64], facts)
            )
        names = [f"{split}-{i:05d}" for i in range(max(1, number // 1000))]
        shards = tuple(
            write_shard(directory, name, samples[i :: len(names)], LABEL_NAMES)
            for i, name in enumerate(names)
        )
        counts = Counter(sample.label for sample in samples)
        classes = {name: counts[name] for name in LABEL_NAMES}
        splits[split] = SplitInfo(num_samples=number, classes=classes, shards=shards)
    protocol = ProtocolInfo(name="made-up", version=1, settings={}, hash="0" * 64)
    source = {"kept": sum(sizes.values()), "groups": 0}
    write_manifest(
        directory,
        Manifest(
            dataset="made-up", classes=LABEL_NAMES, label_rule="as given", protocol=protocol,
            source=source, packing={"image_short_side_px": 256, "image_quality": 90}, splits=splits,
        ),
    )  # fmt: skip


def made_up(subject: Any) -> tuple[Any, list[int]]:
    """Predictions of the split, somewhat better than chance."""
    from mmsa.evaluation.scores.metrics import Predictions

    samples = [subject.reader.read(*place) for place in subject.reader.places()]
    samples.sort(key=lambda one: one.key)
    keys, labels = [one.key for one in samples], np.array([one.label for one in samples])
    logits = np.random.default_rng(1).normal(scale=1.5, size=(len(keys), len(LABEL_NAMES)))
    logits[np.arange(len(keys)), labels] += 1.2
    return Predictions(keys, labels, logits.astype(np.float32), LABEL_NAMES), [len(keys)]


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """`function`, adding the CPU seconds of each of its calls to `spent[name]`."""

    def call(*arguments: Any, **settings: Any) -> Any:
        begin = time.process_time()
        try:
            return function(*arguments, **settings)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - begin

    return call


def measure(folder: Path, num_samples: int) -> dict[str, float]:
    """Part -> CPU seconds; `all` includes what lies between the parts."""
    import evaluate
    import train
    from mmsa.evaluation import split_evaluation as measured

    shards, run = folder / "shards", folder / "run"
    sizes = {"train": round(0.8 * num_samples), "val": NUM_VAL, "test": num_samples}
    pack(shards, sizes)
    settings = [f"data.shards={shards}", f"run.dir={run}", "train.max_steps=1"]
    settings.append("train.mixed_precision=no")  # as evaluate.py computes, in the same process
    assert train.main(["--config", "launch/runs/demo.yaml", *settings]) == 0
    spent: dict[str, float] = {}
    rows_of = measured.rows_of  # a generator: its work is done when it is read
    measured.rows_of = lambda *arguments: list(rows_of(*arguments))  # type: ignore[assignment]
    for names in PARTS.values():
        for name in names:
            owner, _, attribute = f"measured.{name}".rpartition(".")
            place = measured.files if owner.endswith("files") else measured
            setattr(place, attribute, timed(getattr(place, attribute), name, spent))
    of = measured.SplitEvaluation
    of.write_report = timed(of.write_report, "all", spent)  # type: ignore[method-assign]
    of.predict = lambda self, *_, **__: made_up(self.target)  # type: ignore[method-assign]
    assert evaluate.main([str(run), "--split", "test"]) == 0
    found = {part: sum(spent[name] for name in names) for part, names in PARTS.items()}
    return {**found, "all": spent["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=17_024, help="of the test split")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.samples)
    print(f"\na report of {arguments.samples:,} samples without the model, CPU seconds")
    for part, seconds in figures.items():
        print(f"{part:42} {seconds:7.2f}")
    write_json(arguments.json, {**machine(), "num_samples": arguments.samples, "cpu_s": figures})


if __name__ == "__main__":
    main()
