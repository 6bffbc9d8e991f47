"""The model card: what the hub reads (YAML) and what people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmsa.config import ImageEncoderConfig, TextEncoderConfig
from mmsa.export import Export
from mmsa.exporting.hub.results import Scored, eval_results, table

CARD_NAME = "README.md"
_LIBRARY = "mmsa"


@dataclass(frozen=True)
class CardFacts:
    """What the card says that the export does not: its name on the hub and the user's licence."""

    name: str | None  # ORG/NAME
    license: str | None
    package: str | None  # what pip installs as mmsa


def model_card(export: Export, scored: Sequence[Scored], facts: CardFacts) -> str:
    """The content of `README.md` for the export, whose reports are `scored`."""
    reads = _reads(export)
    sections = [
        f"# {_title(export, facts)}",
        f"Predicts the sentiment of a post from its {reads}: "
        f"{', '.join(f'`{name}`' for name in export.label_names)}.",
        _results(scored),
        _model(export),
        _data(export),
        _intended(export),
        _running(export, facts),
        _licence(facts),
    ]
    return f"---\n{_metadata(export, scored, facts)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(export: Export, scored: Sequence[Scored], facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    task = (
        "image-classification" if export.preprocessing.max_tokens is None else "text-classification"
    )
    data = ModelCardData(
        license=facts.license,
        library_name=_LIBRARY,
        pipeline_tag=task,
        tags=["sentiment-analysis", "multimodal", "safetensors"],
        model_name=_title(export, facts),
        eval_results=eval_results(scored, task) or None,
    )
    return str(data.to_yaml())


def _title(export: Export, facts: CardFacts) -> str:
    if facts.name is not None:
        return facts.name.rpartition("/")[2]
    return f"Sentiment of {export.facts.get('dataset', 'posts')}"


def _reads(export: Export) -> str:
    read = export.preprocessing
    names = [name for name, one in (("text", read.max_tokens), ("image", read.image)) if one]
    return " and ".join(names)


def _results(scored: Sequence[Scored]) -> str:
    if not scored:
        return "## Results\n\nNo evaluation report of these weights was at hand."
    level = f"{scored[0].level:.0%}"
    return (
        f"## Results\n\n{table(scored)}\n\n"
        f"In brackets: {level} intervals, a percentile bootstrap over groups of duplicates. A "
        "protocol with its hash says which samples are in a split; scores under another protocol "
        "are not comparable. Of a split that decided which checkpoint was kept (`val`), scores are "
        "too high."
    )


def _model(export: Export) -> str:
    model = export.config.model
    lines = []
    if export.preprocessing.max_tokens is not None:
        lines.append(
            f"- text: {_encoder(model.text_encoder)}, at most {export.preprocessing.max_tokens} "
            "tokens"
        )
    if export.preprocessing.image is not None:
        side = export.preprocessing.image.image_size_px
        lines.append(f"- image: {_encoder(model.image_encoder)}, {side} x {side} pixels")
    lines.append(f"- fusion head: `{model.fusion.name}`")
    if export.may_lack:
        lines.append(f"- may lack: {' or '.join(export.may_lack)}")
    temperature = export.calibration.temperature if export.calibration else None
    if temperature is not None:
        lines.append(f"- probabilities are calibrated (temperature {temperature:.4g})")
    lines.append(f"- training step {export.facts.get('step')}, seed {export.config.run.seed}")
    return "## Model\n\n" + "\n".join(lines)


def _encoder(config: TextEncoderConfig | ImageEncoderConfig) -> str:
    """The encoder's name, without the folders of a local path."""
    family, _, place = config.name.rpartition(":")
    shown = place.rstrip("/").rpartition("/")[2] if place.startswith(("/", ".", "~")) else place
    sizes: Any = config.config or {}
    kind = sizes.get("architecture") or sizes.get("model_type")
    named = f"`{family}:{shown}`" if family else f"`{shown}`"
    return named if kind is None or kind == shown else f"{named} ({kind})"


def _data(export: Export) -> str:
    digest = str(export.facts.get("shards_digest"))
    return (
        f"## Training data\n\n`{export.facts.get('dataset')}`, packed as `{digest[:12]}` (the "
        "digest of its manifest). Its terms are its owner's; no sample is part of this repository. "
        "Labels are those of its annotators, and posts carry the views of the people who wrote "
        "them."
    )


def _intended(export: Export) -> str:
    alone = "" if export.may_lack else " A post must have all that the model reads."
    return (
        "## Intended use and limits\n\nFor research on posts like those of the training data, and "
        "for counts over many posts. Not for decisions about single people: a post's sentiment is "
        "often ambiguous, and annotators disagree about it.\n\n"
        "- Other languages, topics, years and platforms than those of the training data were not "
        "measured.\n"
        "- Irony, and text inside images, were not measured apart.\n"
        f"- A text is cut at the token limit above.{alone}"
    )


def _running(export: Export, facts: CardFacts) -> str:
    name = facts.name or "ORG/NAME"
    install = (
        f"pip install {facts.package}" if facts.package else "# in a checkout of mmsa: make install"
    )
    code = "\n".join(
        [
            "import mmsa\n",
            f'model = mmsa.load("{name}")',
            "result = model.predict(texts, images)",
            "result.labels, result.probabilities",
        ]
    )
    endpoint = "" if facts.package else " They need a `requirements.txt` that installs `mmsa`."
    return (
        f"## How to run\n\n```\n{install}\n```\n\n```python\n{code}\n```\n\n"
        "`mmsa.load` fetches weights (safetensors), JSON and the tokenizer, compares each file "
        "with its SHA-256, and runs no code of this repository. `python -m mmsa serve` puts the "
        f"model behind HTTP. `handler.py` is for Inference Endpoints.{endpoint}"
    )


def _licence(facts: CardFacts) -> str:
    stated = (
        f"The weights are under `{facts.license}`."
        if facts.license
        else "No licence of the weights was stated when this card was written."
    )
    return (
        f"## Licence\n\n{stated} The pretrained encoders that they began from, and the training "
        "data, have licences of their own, which may forbid some uses."
    )
