"""The data card: `README.md` next to the tars, in the form of the Hugging Face hub.

Made from the manifest alone, so the same set has the same card. The front matter follows
https://huggingface.co/docs/hub/datasets-cards; `configs` lets `datasets.load_dataset` find the
splits.
"""

from __future__ import annotations

from typing import Any

import yaml

from mmsa.data.manifest import Manifest
from shards.label_rules import shown_rule
from shards.reports.markdown import code, plain, table

CARD_NAME = "README.md"

_MVSA = """\
```bibtex
@inproceedings{niu2016mvsa,
  title     = {Sentiment Analysis on Multi-View Social Data},
  author    = {Niu, Teng and Zhu, Shiai and Pang, Lei and El-Saddik, Abdulmotaleb},
  booktitle = {MultiMedia Modeling (MMM)},
  pages     = {15--27},
  year      = {2016}
}
```
"""
_FUSED = ("fusion", "majority-fusion", "majority-soft")
_FUSION = """\
Labels of text and picture are joined by the rule of Xu and Mao, "MultiSentiNet: A Deep Semantic
Network for Multimodal Sentiment Analysis" (CIKM 2017).
"""
_ENRICHED = """\
The enriched MVSA Twitter set: Mohammed and Aleqabie (IICCIT 2022), made from MVSA:

"""
_PRIVATE = """\
Research data without a formal licence: tweets and pictures remain their authors'. Use it for
research, cite its source, and do not publish the samples without knowing that you may.
"""
_OWN = "The licence is that of the raw data; write it here before you share the set.\n"
# Source -> (title, citation, note on the licence)
_SOURCES = {
    "mvsa-single": ("MVSA-Single", _MVSA, _PRIVATE),
    "mvsa-multiple": ("MVSA-Multiple", _MVSA, _PRIVATE),
    "mvsa-enriched": ("Enriched MVSA", _ENRICHED + _MVSA, _PRIVATE),
    "synthetic": ("Synthetic MVSA", "Made up by `python -m shards synthetic`.\n", "No rights.\n"),
}
_NO_CITATION = "Name the source of the raw data here.\n"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))


def card_text(manifest: Manifest) -> str:
    """The content of the data card of `manifest`."""
    title, citation, licence = _SOURCES.get(
        manifest.dataset, (manifest.dataset, _NO_CITATION, _OWN)
    )
    parts = [
        f"---\n{_front_matter(manifest, title)}---\n",
        f"# {plain(title)}\n",
        "Texts with pictures, each pair in one class of sentiment, as WebDataset tar shards.\n",
        "## Splits\n",
        _splits(manifest),
        _protocol(manifest),
        "## What was packed\n",
        _source(manifest),
        "## Samples\n",
        _samples(manifest),
        "## Citation\n",
        citation + (f"\n{_FUSION}" if manifest.label_rule in _FUSED else ""),
        "## Licence\n",
        licence,
    ]
    return "\n".join(parts)


def _front_matter(manifest: Manifest, title: str) -> str:
    total = sum(split.num_samples for split in manifest.splits.values())
    size = next((name for limit, name in _SIZES if total < limit), "n>1M")
    content: dict[str, Any] = {
        "pretty_name": title,
        "license": "other",
        "task_categories": ["text-classification", "image-classification"],
        "tags": ["multimodal", "sentiment-analysis", "webdataset"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {
                        "split": {"val": "validation"}.get(name, name),
                        "path": _paths(name, [shard.tar for shard in split.shards]),
                    }
                    for name, split in manifest.splits.items()
                    if split.shards
                ],
            }
        ],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _paths(split: str, tars: list[str]) -> str | list[str]:
    """A pattern where the names are those of `pack`, else all of them."""
    named = all(tar.startswith(f"{split}-") for tar in tars)
    return f"{split}-*.tar" if named else tars


def _splits(manifest: Manifest) -> str:
    header = ["split", *manifest.classes, "all", "shards"]
    rows = [
        [name, *(split.classes.get(label, 0) for label in manifest.classes)]
        + [split.num_samples, len(split.shards)]
        for name, split in manifest.splits.items()
    ]
    return table(header, rows)


def _protocol(manifest: Manifest) -> str:
    protocol = manifest.protocol
    settings = ", ".join(
        f"{name} {':'.join(map(str, v.values())) if isinstance(v, dict) else v}"
        for name, v in protocol.settings.items()
    )
    return (
        f"Protocol {code(protocol.name)}, version {protocol.version}"
        f"{f' ({plain(settings)})' if settings else ''}, hash\n"
        f"`{protocol.hash}`. Sets with the same hash hold the same samples in the same splits.\n"
    )


def _source(manifest: Manifest) -> str:
    source = manifest.source
    rows = [["read", source.get("read", "")], ["kept", source.get("kept", "")]]
    rows += [[f"kept without {name}", number] for name, number in manifest.missing().items()]
    rows += [[f"dropped: {reason}", n] for reason, n in source.get("dropped", {}).items()]
    return table(["", "samples"], rows) + (
        f"\nLabel rule: {code(shown_rule(manifest.label_rule))}. What was dropped is listed in "
        "`rejected.jsonl`.\n"
    )


def _samples(manifest: Manifest) -> str:
    packing = manifest.packing
    side = packing.get("image_short_side_px")
    size = "in their original size" if side is None else f"short side {side} pixels at most"
    if packing.get("image_mode") == "square":
        size = f"squares of {side} pixels"
    fields = packing.get("fields", {"image": ["jpg"], "text": ["txt"], "label": "json:label"})
    return (
        f"Members of a sample: the picture ({code(', '.join(fields['image']))}; {size}), the text\n"
        f"({code(', '.join(fields['text']))}, UTF-8), and the class by name "
        f"({code(fields['label'])}).{_lacking(manifest)}\n"
        f"`manifest.json` names every shard with its sha256; its own digest is\n"
        f"`{manifest.digest}`.\n"
    )


def _lacking(manifest: Manifest) -> str:
    """A sentence on samples without a text or an image; empty where there are none."""
    missing = list(manifest.missing())
    if not missing:
        return ""
    return f" A sample without {' or '.join(missing)} lacks that member."
