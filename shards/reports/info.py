"""The contents of a packed data set, to look at before training: counts and distributions.

Texts and images are not decoded: lengths are in the index, sizes in `KEY.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mmsa.data.index_file import lacks
from mmsa.data.manifest import Manifest, load_manifest
from mmsa.data.reader import SplitReader
from mmsa.errors import UserError
from mmsa.labels import class_map
from shards.reports.summary import print_distributions, print_summary, use_command

_QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent
_BINS = 20


def run_info(directory: Path | str, *, as_json: bool, html: Path | None) -> None:
    """Describe `directory` on the screen or as JSON, and as a page where `html` is given."""
    manifest = load_manifest(directory)
    facts = describe(directory, manifest)
    if as_json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_summary(manifest, directory=None if isinstance(directory, str) else directory)
        print_distributions(facts)
    if html is not None:
        from shards.reports.info_page import page

        try:
            html.write_text(page(facts), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--html {html} cannot be written ({error.strerror}); name a file in an existing "
                "folder"
            ) from None
        if not as_json:
            print(f"wrote {html}")
    if not as_json:
        print(f"next: {use_command(directory, manifest)}")


def describe(directory: Path | str, manifest: Manifest) -> dict[str, Any]:
    """Counts and distributions of the packed set, as JSON.

    `distributions` has the characters of the texts, and width, height and aspect ratio of the
    images where the samples have them; each with quantiles (percent -> value) and a histogram.
    Raises `ShardDamage` where an index or a sample is not what the manifest says.
    """
    lengths: list[int] = []
    sizes: list[tuple[int, int]] = []
    groups_of: dict[str, Counter[int]] = {}
    classes = class_map(manifest.classes, None) if len(manifest.classes) > 1 else None
    for name in manifest.splits:
        if classes is None:
            break
        reader = SplitReader(directory, manifest, name, classes)
        places, records = reader.all_records()
        lengths += records["text_length"][~lacks(records, "text")].tolist()
        groups_of[name] = Counter(records["group"].tolist())
        for place in places.tolist():
            meta = reader.read(*place).meta
            if isinstance(meta.get("width"), int) and isinstance(meta.get("height"), int):
                sizes.append((meta["width"], meta["height"]))
    widths, heights = ([size[i] for size in sizes] for i in (0, 1))
    distributions = {
        "text length, characters": _distribution(lengths),
        "picture width, pixels": _distribution(widths),
        "picture height, pixels": _distribution(heights),
        "picture aspect ratio": _distribution([w / h for w, h in sizes]),
    }
    return {
        "dataset": manifest.dataset,
        "digest": manifest.digest,
        "classes": list(manifest.classes),
        "label_rule": manifest.label_rule,
        "protocol": manifest.protocol.model_dump(mode="json"),
        "source": manifest.source,
        "packing": manifest.packing,
        "splits": {
            name: {
                "num_samples": split.num_samples,
                "classes": split.classes,
                **({"missing": split.missing} if split.missing else {}),
                "shards": len(split.shards),
                "bytes": sum(shard.tar_bytes for shard in split.shards),
            }
            for name, split in manifest.splits.items()
        },
        "duplicates": _duplicates(groups_of),
        "distributions": {name: found for name, found in distributions.items() if found},
    }


def _duplicates(groups_of: dict[str, Counter[int]]) -> dict[str, int]:
    """Groups of two samples and more, over all splits, and those that are in several splits."""
    total: Counter[int] = Counter()
    for counts in groups_of.values():
        total.update(counts)
    crossing = sum(
        sum(group in counts for counts in groups_of.values()) > 1
        for group, number in total.items()
        if number > 1
    )
    return {
        "groups": sum(number > 1 for number in total.values()),
        "samples_in_groups": sum(number for number in total.values() if number > 1),
        "largest_group": max(total.values(), default=0),
        "groups_in_several_splits": crossing,
    }


def _distribution(values: list[int] | list[float]) -> dict[str, Any] | None:
    """Quantiles and a histogram of `values`; None where there are none."""
    if not values:
        return None
    array = np.asarray(values, dtype=np.float64)
    counts, edges = np.histogram(array, bins=_BINS)
    points = np.percentile(array, _QUANTILES)
    return {
        "mean": round(float(array.mean()), 3),
        "quantiles": {str(q): round(float(p), 3) for q, p in zip(_QUANTILES, points, strict=True)},
        "histogram": {
            "edges": [round(float(edge), 3) for edge in edges],
            "counts": counts.tolist(),
        },
    }
