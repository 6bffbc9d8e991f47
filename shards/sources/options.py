"""What the command line may say to a source, and how much of it each source takes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from mmsa.errors import UserError
from shards.example import Reason, Reject
from shards.label_rules import RULES


@dataclass(frozen=True)
class SourceOptions:
    """Settings of reading; each source refuses those that it does not take.

    `labels` is a rule of `shards.label_rules`, `normalize` names of `NORMALIZATIONS`. The columns
    are those of a table, found by common names where None; `classes` the class names and their
    order, from the data where None. `encoding` replaces the source's own encoding of texts.
    """

    labels: str = "fused"
    normalize: tuple[str, ...] = ()
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    id_column: str | None = None
    classes: tuple[str, ...] | None = None
    encoding: str | None = None

    def problems(self) -> list[str]:
        """What is wrong whatever the source, in words; empty where nothing is."""
        from mmsa.data.decoding.packed_form import NORMALIZATIONS  # brings Pillow: not for --help

        found: list[str] = []
        if self.labels not in RULES:
            found.append(f"--labels {self.labels} is no label rule; known: {', '.join(RULES)}")
        for name in self.normalize:
            if name not in NORMALIZATIONS:
                found.append(f"--normalize {name}: known are {', '.join(NORMALIZATIONS)}")
        if self.classes is not None:
            if len(set(self.classes)) != len(self.classes):
                found.append(f"--classes {','.join(self.classes)} names a class twice")
            if not self.classes or any(not name.strip() for name in self.classes):
                found.append("--classes names an empty class; give names, as in negative,positive")
        if self.encoding is not None and not _is_text_encoding(self.encoding):
            found.append(f"--encoding {self.encoding} is not known; for example utf-8, gb18030")
        return found

    def refuse_columns(self, source: str) -> None:
        """Raise `UserError` where a table's columns or classes are named for a source without."""
        for option in ("text_column", "image_column", "label_column", "id_column", "classes"):
            if getattr(self, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise UserError(f"{flag} does not apply to the source {source}; leave it out")

    def refuse_rule(self, source: str, allowed: tuple[str, ...] = ("fused",)) -> None:
        """Raise `UserError` for a label rule that the source's labels do not allow."""
        if self.labels in allowed:
            return
        if allowed == ("fused",):
            why = "it has one label for each pair; leave --labels out"
        else:
            why = f"it has one annotator; it takes {', '.join(allowed)}"
        raise UserError(f"--labels {self.labels} does not apply to the source {source}: {why}")


def clean_text(text: str, options: SourceOptions, *, detail: str) -> str:
    """The packed form of a text; `Reject` with `detail` where nothing is left of it."""
    from mmsa.data.decoding.packed_form import BadText, text_as_packed

    try:
        return text_as_packed(text, options.normalize)
    except BadText:
        raise Reject(Reason.EMPTY_TEXT, detail) from None


def _is_text_encoding(name: str) -> bool:
    try:
        "".encode(codecs.lookup(name).name)
    except (LookupError, ValueError, TypeError):
        return False
    return True


DEFAULT = SourceOptions()
