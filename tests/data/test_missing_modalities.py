"""Samples without a text or an image: how they are read, and what contradicts the index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import replace_records
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import PREPROCESSING, lacking_set, open_split

from mmsa.data.batch_requests import Request
from mmsa.data.index_file import read_index
from mmsa.data.manifest import MANIFEST_NAME, Modality, load_manifest, write_manifest
from mmsa.data.modality_dropout import ModalityDropout, kept_modalities
from mmsa.data.raw_sample import RawSample
from mmsa.data.read_and_decode import ReadAndDecode
from mmsa.data.stream import Batch, Collate
from mmsa.data.text import word_tokenizer
from mmsa.errors import ShardDamage, UserError
from mmsa.evaluation.modality_audit.changed_inputs import Change, ChangedReader
from mmsa.labels import class_map
from shards.verify import verify

LACKS = ["", "text", "image", ""]


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    lacking_set(tmp_path / "set", LACKS)
    return tmp_path / "set"


def test_a_sample_says_what_it_has(lacking: Path) -> None:
    reader = open_split(lacking, load_manifest(lacking))
    samples = [reader.read(0, row) for row in range(len(LACKS))]
    assert [sample.has_text for sample in samples] == [True, False, True, True]
    assert [sample.has_image for sample in samples] == [True, True, False, True]
    assert (samples[1].text, bytes(samples[2].image)) == ("", b"")
    assert reader.missing == {"text": 1, "image": 1}
    assert reader.shards[0] == load_manifest(lacking).splits["train"].shards[0]


@pytest.mark.parametrize(
    ("row", "other", "said"),
    [
        (0, 1, "it lacks nothing, the index says its text"),
        (1, 0, "it lacks its text, the index says nothing"),
        (2, 1, "it lacks its image, the index says its text"),
    ],
)
def test_an_index_that_says_otherwise_is_damage(
    lacking: Path, row: int, other: int, said: str
) -> None:
    shard = load_manifest(lacking).splits["train"].shards[0]
    records = read_index(lacking, shard).copy()
    records["missing"][[row, other]] = records["missing"][[other, row]]  # the counts still agree
    manifest = replace_records(lacking, "train", 0, records)
    reader = open_split(lacking, manifest)
    with pytest.raises(ShardDamage, match=said):
        reader.read(0, row)
    verified = said.replace("it lacks", "lacks").replace(", the", "; the")
    assert any(verified in fault for fault in faults(lacking))


def faults(directory: Path) -> list[str]:
    """What verify finds wrong about missing modalities; the made-up sets have other faults too."""
    found = verify(directory, workers=1, quiet=True).faults
    return [fault for fault in found if "lacks" in fault or "missing" in fault]


@pytest.mark.parametrize("value", [3, 4, 0xFFFF])
def test_a_sample_that_lacks_both_is_damage(lacking: Path, value: int) -> None:
    shard = load_manifest(lacking).splits["train"].shards[0]
    records = read_index(lacking, shard).copy()
    records["missing"][0] = value
    manifest = replace_records(lacking, "train", 0, records)
    with pytest.raises(ShardDamage, match=f"has version 2 and a sample that lacks {value}"):
        open_split(lacking, manifest).records(0)


def test_counts_of_the_manifest_and_the_index_are_compared(lacking: Path) -> None:
    shard = load_manifest(lacking).splits["train"].shards[0]
    records = read_index(lacking, shard).copy()
    records["missing"][0] = 2
    manifest = replace_records(lacking, "train", 0, records)
    with pytest.raises(ShardDamage, match=r"\{'text': 1, 'image': 2\}; the manifest says"):
        open_split(lacking, manifest).records(0)


def test_verify_accepts_them_and_finds_counts_that_do_not_sum(lacking: Path) -> None:
    assert faults(lacking) == []
    manifest = load_manifest(lacking)
    split = manifest.splits["train"].model_copy(update={"missing": {"text": 1, "image": 2}})
    write_manifest(lacking, manifest.model_copy(update={"splits": {"train": split}}))
    assert faults(lacking) == [
        "manifest.json: the missing of the shards of train do not sum to its own"
    ]


def test_a_set_of_version_1_may_lack_nothing(lacking: Path, tmp_path: Path) -> None:
    """As an earlier version would take it: the manifest is refused before a tar is opened."""
    other = Path(shutil.copytree(lacking, tmp_path / "other"))
    content = json.loads((other / MANIFEST_NAME).read_text())
    content["version"] = 1
    (other / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match="version 1 with the missing counts of another version"):
        load_manifest(other)


def collated(
    directory: Path, *, dropout: ModalityDropout | None = None, epoch: int = 0, rows: int = 0
) -> Batch:
    """All samples of the set as one batch."""
    reader = open_split(directory, load_manifest(directory))
    numbers = np.arange(rows or len(reader))
    request = Request(epoch, np.zeros_like(numbers), numbers, len(numbers))
    read = ReadAndDecode(reader, PREPROCESSING)([request])
    tokenizer = word_tokenizer(["word1 word2"], 10, 12)
    (batch,) = Collate(tokenizer, dropout=dropout)(read)
    return batch


def test_a_batch_says_what_its_samples_have(lacking: Path) -> None:
    batch = collated(lacking)
    assert batch["text_present"].tolist() == [True, False, True, True]
    assert batch["image_present"].tolist() == [True, True, False, True]
    assert batch["num_images"] == 3
    assert batch["attention_mask"][1].sum() == 2  # an empty text: special tokens alone
    # A BatchNorm must not see blank images: the row has the view of another sample.
    assert torch.equal(batch["images"][2], batch["images"][0])
    assert not torch.equal(batch["images"][1], batch["images"][0])


def test_a_batch_without_any_image_is_black(tmp_path: Path) -> None:
    lacking_set(tmp_path, ["image", "image"])
    batch = collated(tmp_path)
    assert (batch["num_images"], int(batch["images"].sum())) == (0, 0)
    assert (batch["text_present"], batch["image_present"].tolist()) == (None, [False, False])


@settings(max_examples=25, deadline=None)
@given(
    text=st.floats(0, 0.95),
    image=st.floats(0, 0.95),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
    key=st.integers(0, 2**64 - 1),
    has=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_dropout_never_takes_the_last_modality(
    text: float, image: float, seed: int, epoch: int, key: int, has: tuple[bool, bool]
) -> None:
    sample = RawSample("key", "tar", b"", "", b"", 0, key, *has)
    dropout = ModalityDropout(seed, min(text, 0.99 - image), image)
    kept = kept_modalities(sample, dropout, epoch)
    assert any(kept)
    assert kept == kept_modalities(sample, dropout, epoch)
    assert has == (True, True) or kept == has


def test_dropout_takes_its_shares_anew_in_each_epoch() -> None:
    dropout = ModalityDropout(seed=3, text=0.2, image=0.3)
    samples = [RawSample("", "", b"", "", b"", 0, number) for number in range(4000)]
    first = [kept_modalities(sample, dropout, 0) for sample in samples]
    assert sum(not text for text, _ in first) == pytest.approx(800, abs=100)
    assert sum(not image for _, image in first) == pytest.approx(1200, abs=100)
    assert first != [kept_modalities(sample, dropout, 1) for sample in samples]


def test_dropout_masks_and_leaves_the_inputs_alone(lacking: Path) -> None:
    plain = collated(lacking)
    batch = collated(lacking, dropout=ModalityDropout(0, 0.0, 0.99))
    assert batch["image_present"].tolist() == [False, True, False, False]  # 1 has nothing else
    assert torch.equal(batch["images"], plain["images"])
    assert batch["num_images"] == 3


def test_the_audit_leaves_out_what_the_model_was_trained_to_miss(lacking: Path) -> None:
    manifest = load_manifest(lacking)
    classes = class_map(manifest.classes, None)

    def has(change: Change, *may_lack: Modality) -> list[tuple[bool, bool]]:
        reader = ChangedReader(
            lacking, manifest, "train", classes,
            change=change, mean=(0.5, 0.5, 0.5), may_lack=may_lack,
        )  # fmt: skip
        samples = [reader.read(0, row) for row in range(len(LACKS))]
        return [(sample.has_text, sample.has_image) for sample in samples]

    was = [(True, True), (False, True), (True, False), (True, True)]
    assert has(Change.TEXT_ONLY) == has(Change.TEXT_ONLY, "text") == was
    assert has(Change.TEXT_ONLY, "image") == [(text, False) for text, _ in was]
    assert has(Change.IMAGE_ONLY, "text") == [(False, image) for _, image in was]
    assert has(Change.SHUFFLED_BOTH, "text", "image") == was


def test_the_audit_moves_only_what_there_is(tmp_path: Path) -> None:
    lacks = ["", "image", "", "text", "", "image"]
    manifest = lacking_set(tmp_path, lacks)
    plain = open_split(tmp_path, manifest)
    before = [plain.read(0, row) for row in range(len(lacks))]
    for change in Change:
        reader = ChangedReader(
            tmp_path, manifest, "train", class_map(manifest.classes, None), change=change,
            mean=(0.5, 0.5, 0.5),
        )  # fmt: skip
        after = [reader.read(0, row) for row in range(len(lacks))]
        for name in ("has_text", "has_image", "key", "label"):
            assert [getattr(s, name) for s in after] == [getattr(s, name) for s in before]
        assert all(bool(s.image) == s.has_image for s in after)
        if change is Change.SHUFFLED_IMAGES:
            assert sorted(bytes(s.image) for s in after) == sorted(bytes(s.image) for s in before)
            assert all(a.image != b.image for a, b in zip(after, before, strict=True) if b.image)
        if change is Change.SHUFFLED_TEXTS:
            assert sorted(s.text for s in after) == sorted(s.text for s in before)
