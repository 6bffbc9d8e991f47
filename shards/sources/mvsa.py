"""MVSA-Single and MVSA-Multiple as distributed (Niu et al., MMM 2016), which share a layout.

    RAW/labelResultAll.txt    ID, then text label,image label of each annotator, tabs between;
                              CRLF; a header line or none
    RAW/data/ID.txt, ID.jpg   the tweet (GB18030, or what a byte order mark says) and its image; in
                              any letter case, and of any image type

The samples read are every label line that is not blank, and every id that has files and no label
line. An id may have several lines. Where they agree, the first is kept and the others are counted
as repeated; where they differ, nobody knows which is right and all are rejected.

MVSA-Multiple has three annotators. A label needs a majority of at least two, for text and image
separately; then the label rule decides. By the fusion rule 17,024 of its 19,600 pairs remain (Xu
and Mao, CIKM 2017). Some of its files are empty and a few images do not decode: they are rejected.

`keep_missing` keeps an id without an image file, or without a text file or words in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import field_validator

from mmsa.data.manifest import Modality
from mmsa.errors import UserError
from mmsa.labels import LABEL_NAMES
from mmsa.raw_files.file_names import TEXT_SUFFIX, is_image_name, is_text_name, shown_stem
from shards.example import Example, RawData, Reason, Reject, Rejected
from shards.label_rules import Vote, decide, rule_name
from shards.sources.encoded_text import CountedTexts
from shards.sources.mvsa_lines import LABEL_FILE, Layout, Line, Votes, label_lines, parse_line
from shards.sources.settings import LabelRuleSettings, text_file, text_or_none
from shards.sources.source import Source, register_source

ENCODING = "gb18030"
_ONE_ANNOTATOR_RULES = ("fused", "agree", "text", "image")


def read_layout(layout: Layout, raw: Path, settings: LabelRuleSettings) -> RawData:
    """Read the label file of `raw` and list its folder.

    Raises `UserError` where the layout is not as described above. Items come in the order of the
    label file, then the ids without a label line, sorted.
    """
    lines = [parse_line(layout, number, line) for number, line in label_lines(layout, raw)]
    labelled = {line.source_id for line in lines}
    files = _files_by_id(raw / "data")
    unlabelled = sorted(set(files) - labelled)
    reader = _Reader(layout, raw, files, settings)
    return RawData(
        total=len(lines) + len(unlabelled),
        items=reader.items(lines, unlabelled),
        classes=LABEL_NAMES,
        dataset=layout.dataset,
        label_rule=rule_name(settings.labels, annotators=layout.annotators),
        facts=reader.facts,
    )


class SingleSettings(LabelRuleSettings):
    """Of data sets with one annotator."""

    @field_validator("labels")
    @classmethod
    def _needs_one_annotator(cls, rule: str) -> str:
        if rule not in _ONE_ANNOTATOR_RULES:
            raise ValueError(
                "does not apply to a source with one annotator, which takes "
                + ", ".join(_ONE_ANNOTATOR_RULES)
            )
        return rule


@register_source
class MvsaSingle(Source):
    """MVSA-Single: one annotator."""

    name = "mvsa-single"
    help = "labelResultAll.txt, data/ID.txt, data/ID.jpg"
    Settings = SingleSettings

    def read(self, raw: Path, settings: SingleSettings) -> RawData:
        return read_layout(Layout(self.name, "MVSA-Single", annotators=1), raw, settings)


@register_source
class MvsaMultiple(Source):
    """MVSA-Multiple: three annotators."""

    name = "mvsa-multiple"
    help = "the same, with three annotators per line"
    Settings = LabelRuleSettings

    def read(self, raw: Path, settings: LabelRuleSettings) -> RawData:
        return read_layout(Layout(self.name, "MVSA-Multiple", annotators=3), raw, settings)


def _files_by_id(folder: Path) -> dict[str, list[str]]:
    """The names of the texts and images of each id."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be listed ({error.strerror})") from None
    files: dict[str, list[str]] = {}
    for name in names:
        if is_text_name(name) or is_image_name(name):
            files.setdefault(shown_stem(name), []).append(name)
    return files


class _Reader:
    """Walks the lines once, and counts the encodings of texts."""

    def __init__(
        self,
        layout: Layout,
        raw: Path,
        files: dict[str, list[str]],
        settings: LabelRuleSettings,
    ) -> None:
        self._layout = layout
        self._raw = raw
        self._files = files
        self._settings = settings
        self._texts = CountedTexts(ENCODING, settings.encoding)

    def facts(self) -> dict[str, object]:
        """What the texts say about their encoding."""
        return self._texts.facts()

    def items(self, lines: list[Line], unlabelled: list[str]) -> Iterator[Example | Rejected]:
        """One item for each line, then one for each id without a line."""
        votes_of: dict[str, set[Votes]] = {}
        for line in lines:
            if line.votes:
                votes_of.setdefault(line.source_id, set()).add(line.votes)
        first_line: dict[str, int] = {}
        for line in lines:
            if line.votes is None:
                assert line.rejected, line
                yield line.rejected
                continue
            try:
                _check_repetition(line, votes_of[line.source_id], first_line)
                yield self._example(line.source_id, line.votes)
            except Reject as reject:
                yield reject.of(line.source_id)
        for source_id in unlabelled:
            yield Rejected(source_id, Reason.NO_LABEL_LINE, f"not in {LABEL_FILE}")

    def _example(self, source_id: str, votes: Votes) -> Example:
        decided = decide(votes, self._settings.labels)
        text, image_path = self._text(source_id), self._image(source_id)
        if not text and image_path is None:
            raise Reject(
                Reason.NEITHER, f"data/ has no image of {source_id}, and no text in a file"
            )
        return Example(
            key=f"{self._layout.dataset}-{source_id}",
            source_id=source_id,
            dataset=self._layout.dataset,
            text=text,
            image_path=image_path,
            label=decided.label,
            text_label=decided.text_label,
            image_label=decided.image_label,
            votes=votes if self._layout.annotators > 1 else None,
            soft=decided.soft,
        )

    def _text(self, source_id: str) -> str:
        """The text; "" where there is none and the settings keep such samples."""
        found = self._file(source_id, "text", TEXT_SUFFIX, is_text_name)
        return "" if found is None else self._read_text(found)

    def _image(self, source_id: str) -> Path | None:
        """The image; None where there is none and the settings keep such samples."""
        return self._file(source_id, "image", ".jpg", is_image_name)

    def _file(
        self, source_id: str, modality: Modality, usual: str, fits: Callable[[str], bool]
    ) -> Path | None:
        """The text or image of an id: the one with the suffix `usual`, else the only one there is.

        Where there is none, it is None if the settings keep such samples, and else the path of the
        usual one, which is then missing.
        """
        found = [name for name in self._files.get(source_id, ()) if fits(name)]
        if len(found) > 1 and source_id + usual not in found:
            raise Reject(Reason.NAME_REPEATED, f"data/ has {', '.join(found)}")
        if not found and modality in self._settings.keep_missing:
            return None
        only = found[0] if len(found) == 1 else source_id + usual
        return self._raw / "data" / only

    def _read_text(self, path: Path) -> str:
        content = text_file(path, self._settings)
        try:
            text = self._texts.decoded(content)
        except UnicodeDecodeError as error:
            own = self._settings.encoding is None
            reason = Reason.TEXT_ENCODING if own else Reason.OTHER_ENCODING
            raise Reject(reason, f"data/{path.name}: {error.reason}") from None
        detail = f"data/{path.name} holds {len(content)} bytes"
        if not text.strip():
            detail += ", blanks at most"
        return text_or_none(text, self._settings, detail=detail)


def _check_repetition(line: Line, votes: set[Votes], first_line: dict[str, int]) -> None:
    if len(votes) > 1:
        said = "; ".join(_in_words(each) for each in sorted(votes))
        raise Reject(Reason.LABELS_DIFFER, f"line {line.number}; its lines say {said}")
    first = first_line.setdefault(line.source_id, line.number)
    if first != line.number:
        raise Reject(Reason.LABEL_REPEATED, f"line {line.number} says the same as line {first}")


def _in_words(votes: Sequence[Vote]) -> str:
    return " ".join(",".join(vote) for vote in votes)
