import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa.data.index_file import key_hash
from mmsa.errors import UserError
from shards.example import EncodedSample, Example
from shards.splits import published
from shards.splits.protocols import PROTOCOLS, assign, parse_protocol, parse_ratios, protocol_hash

NUMBERS = ["one", "two", "six", "ten", "red", "hot", "old", "new", "big", "wet"]


def sample(
    source_id: str,
    label: str = "positive",
    *,
    text: str = "",
    image_label: str | None = None,
    dataset: str = "mvsa-single",
) -> EncodedSample:
    example = Example(
        key=f"{dataset}-{source_id}",
        source_id=source_id,
        dataset=dataset,
        text=text,
        image_path=Path("absent.jpg"),
        label=label,
        text_label=label,
        image_label=label if image_label is None else image_label,
    )
    return EncodedSample(
        example, chunk="", offset=0, length=0, crc32=0, width=0, height=0, image_hash=""
    )


def spelled(number: int) -> str:
    """A text of its own for each number, far from all others."""
    return " ".join(f"{NUMBERS[int(d)]}{number}x{place}" for place, d in enumerate(f"{number:04}"))


def test_protocol_hash_is_of_the_sorted_lines() -> None:
    expected = hashlib.sha256(b"test\tb\ntrain\ta\ntrain\tc\n").hexdigest()
    assert protocol_hash({"c": "train", "a": "train", "b": "test"}) == expected


def test_ratios() -> None:
    assert parse_ratios("70:20:10") == {"train": 70, "val": 20, "test": 10}
    for wrong in ("8:1", "8:1:x", "8:1:-1", "", "8:1:1:1", "0.8:0.1:0.1"):
        with pytest.raises(UserError, match="three whole numbers"):
            parse_ratios(wrong)
    with pytest.raises(UserError, match="leaves no split"):
        parse_ratios("0:0:0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("other", "unknown protocol 'other'; known: clean, random, kfold:K/N, clmlf, tib10:K"),
        ("clean:1", "unknown protocol 'clean:1'"),
        ("clean:", "unknown protocol 'clean:'"),
        ("file:", "unknown protocol 'file:'"),
        ("file", "unknown protocol 'file'"),
        ("tib10", "tib10:K with K from 1 to 10"),
        ("tib10:0", "tib10:K with K from 1 to 10"),
        ("tib10:11", "tib10:K with K from 1 to 10"),
        ("tib10:\u00b2", "tib10:K with K from 1 to 10"),
        ("kfold:1", "kfold:1/5"),
        ("kfold:1/2", "N at least 3"),
        ("kfold:6/5", "K from 1 to N"),
        ("kfold:0/5", "K from 1 to N"),
    ],
)
def test_names_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_protocol(text)


@pytest.mark.parametrize(
    ("protocol", "dataset", "extra", "message"),
    [
        ("clmlf", "table", {}, "samples of table. Use clean, or file:PATH"),
        ("tib10:1", "mvsa-enriched", {}, "samples of mvsa-enriched"),
        ("clmlf", "mvsa-single", {"seed": 1}, "leave out --seed"),
        ("clmlf", "mvsa-single", {"ratios": {"train": 1, "val": 1, "test": 1}}, "--ratios"),
        ("agree622", "mvsa-single", {"ratios": {"train": 1, "val": 1, "test": 1}}, "--ratios"),
        ("clean", "mvsa-single", {"seed": -1}, "--seed -1 must be at least 0"),
    ],
)
def test_settings_that_a_protocol_does_not_take(
    protocol: str, dataset: str, extra: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        assign(protocol, [sample("1")], dataset=dataset, **extra)  # type: ignore[arg-type]


def test_random_is_what_it_was() -> None:
    given_out = assign(
        "random", [sample("a")], dataset="x", seed=3, ratios={"train": 8, "val": 1, "test": 1}
    )
    assert given_out.split_of == {"mvsa-single-a": "train"}
    assert (given_out.info.name, given_out.info.version) == ("random", 1)
    assert given_out.info.settings == {"seed": 3, "ratios": {"train": 8, "val": 1, "test": 1}}
    assert given_out.info.hash == hashlib.sha256(b"train\tmvsa-single-a\n").hexdigest()
    assert given_out.facts["warnings"] == ["no samples in val and test"]


TWIN_TEXT = "the very same words stand in both of these tweets"


def test_clean_keeps_twins_together_and_random_does_not_look() -> None:
    samples = [sample(f"{n:03}", text=spelled(n)) for n in range(100)]
    samples += [
        sample(f"{n}", "negative" if n % 2 else "positive", text=f"RT @u{n}: {TWIN_TEXT}")
        for n in range(200, 240)
    ]
    clean = assign("clean", samples, dataset="x")
    assert {clean.split_of[f"mvsa-single-{n}"] for n in range(200, 240)} == {"train"}
    assert clean.facts["twins"] == {
        "val": {"samples": 12, "train": 0, "any": 0},  # positive: 12 of 120
        "test": {"samples": 12, "train": 0, "val": 0, "any": 0},
    }
    assert clean.info.settings == {
        "seed": 0,
        "ratios": {"train": 8, "val": 1, "test": 1},
        "picture_bits": 60,
        "text_words_percent": 80,
        "text_min_chars": 24,
    }
    duplicates = clean.facts["duplicates"]
    assert (duplicates["groups"], duplicates["samples_in_groups"]) == (1, 40)
    assert duplicates["conflicting_groups"] == 1
    assert duplicates["largest"][0]["classes"] == {"negative": 20, "positive": 20}
    assert duplicates["largest"][0]["keys"][:2] == ["mvsa-single-200", "mvsa-single-201"]
    assert clean.facts["warnings"] == [
        "duplicate groups of over 1 % of the set: 1; the largest holds 40 of 140 samples "
        "(mvsa-single-200 is one)"
    ]
    group = key_hash("mvsa-single-200")
    assert {clean.group_of[f"mvsa-single-{n}"] for n in range(200, 240)} == {group}
    assert clean.group_of["mvsa-single-007"] == key_hash("mvsa-single-007")

    random = assign("random", samples, dataset="x")
    assert random.group_of == clean.group_of, "groups are looked for whatever the protocol"
    assert random.facts["twins"]["test"]["any"] > 0


labelled_texts = st.lists(
    st.tuples(st.integers(0, 25), st.sampled_from(["positive", "neutral", "negative"])),
    max_size=60,
)


@settings(deadline=None)
@given(labelled_texts, st.sampled_from(["clean", "kfold:2/3", "kfold:1/5"]), st.integers(0, 2))
def test_no_group_in_two_splits_and_the_order_of_reading_does_not_matter(
    drawn: list[tuple[int, str]], protocol: str, seed: int
) -> None:
    samples = [
        sample(f"{position:03}", label, text=spelled(number))
        for position, (number, label) in enumerate(drawn)
    ]
    one = assign(protocol, samples, dataset="x", seed=seed)
    assert set(one.split_of) == {c.key for c in samples}
    splits_of_text: dict[str, set[str]] = {}
    for c in samples:
        splits_of_text.setdefault(c.example.text, set()).add(one.split_of[c.key])
    assert all(len(splits) == 1 for splits in splits_of_text.values())
    assert len(set(one.group_of.values())) == len(splits_of_text)
    assert all(counts["any"] == 0 for counts in one.facts["twins"].values())
    other = assign(protocol, samples[::-1], dataset="x", seed=seed)
    assert other == one


def test_each_sample_is_test_once_in_the_folds_and_val_once() -> None:
    samples = [sample(str(n), "pn"[n % 2], text=spelled(n // 3)) for n in range(60)]
    tested: Counter[str] = Counter()
    validated: Counter[str] = Counter()
    for fold in range(1, 6):
        given_out = assign(f"kfold:{fold}/5", samples, dataset="x")
        assert given_out.info.name == f"kfold:{fold}/5"
        tested.update(key for key, split in given_out.split_of.items() if split == "test")
        validated.update(key for key, split in given_out.split_of.items() if split == "val")
    assert set(tested.values()) == set(validated.values()) == {1}
    assert len(tested) == len(validated) == 60


def test_agree622_leaves_out_what_does_not_agree() -> None:
    samples = [sample(str(n)) for n in range(10)]
    samples += [sample("20", image_label="neutral"), sample("21", image_label="")]
    given_out = assign("agree622", samples, dataset="x")
    assert Counter(given_out.split_of.values()) == {"train": 6, "val": 2, "test": 2}
    assert given_out.left_out == {
        "mvsa-single-20": "text and image labels differ",
        "mvsa-single-21": "text and image labels differ",
    }
    assert set(given_out.group_of) == set(given_out.split_of)
    with pytest.raises(UserError, match="none of the 1 has two labels that do"):
        assign("agree622", samples[-1:], dataset="x")


def whole(dataset: str) -> list[EncodedSample]:
    return [
        sample(number, row.label, dataset=dataset)
        for number, row in published.rows(dataset).items()
    ]


def test_clmlf_whole_and_partial() -> None:
    samples = whole("mvsa-single")
    full = assign("clmlf", samples, dataset="mvsa-single")
    assert (full.info.name, full.info.settings) == ("clmlf", {})
    assert full.info.hash == "1e1d11cafe297567f93be4b230347b3cc5107ad27074e092a9495a66d90ee286"
    with pytest.raises(UserError, match=r"4511 ids, and 2 of them .* \(1, 2\).*'clmlf-partial'"):
        assign("clmlf", samples[2:], dataset="mvsa-single")
    partial = assign("clmlf", samples[2:], dataset="mvsa-single", allow_missing=True)
    assert (partial.info.name, partial.info.settings) == ("clmlf-partial", {"missing": 2})
    assert partial.info.hash != full.info.hash
    assert partial.facts["warnings"] == ["2 of the 4511 ids of clmlf are missing: clmlf-partial"]
    assert assign("clmlf", samples, dataset="mvsa-single", allow_missing=True) == full


def test_clmlf_leaves_out_the_id_that_it_does_not_have() -> None:
    given_out = assign("clmlf", whole("mvsa-multiple"), dataset="mvsa-multiple")
    assert given_out.left_out == {"mvsa-multiple-15324": "not in protocol clmlf"}
    assert given_out.info.hash == "d5962bb0fceefd6fd5290132523c0208454755debcfdda27f7b8b2cd3ab271b5"
    assert "mvsa-multiple-15324" not in given_out.group_of
    fold = assign("tib10:9", whole("mvsa-multiple"), dataset="mvsa-multiple")
    assert fold.left_out == {}
    assert (fold.info.name, fold.info.settings) == ("tib10:9", {})
    partial = assign(
        "tib10:9", whole("mvsa-multiple")[1:], dataset="mvsa-multiple", allow_missing=True
    )
    assert partial.info.name == "tib10-partial:9"


def test_labels_other_than_the_published_are_told() -> None:
    samples = whole("mvsa-single")
    other = "neutral" if samples[0].example.label == "positive" else "positive"
    samples[0] = sample(samples[0].example.source_id, other)
    warnings = assign("clmlf", samples, dataset="mvsa-single").facts["warnings"]
    assert warnings == ["1 labels differ from the fused labels that clmlf is about"]


def test_ids_of_another_data_set() -> None:
    with pytest.raises(UserError, match="none of the 1 usable samples is among the 4511 ids"):
        assign("clmlf", [sample("999999")], dataset="mvsa-single", allow_missing=True)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(b"\xef\xbb\xbfSplit,note,ID\r\ntrain,x,7\r\nDev,,8\r\n\r\ntest,,9\r\n")
    samples = [sample(number) for number in ("7", "8", "9", "10")]
    given_out = assign(f"file:{path}", samples, dataset="x")
    assert given_out.split_of == {
        "mvsa-single-7": "train",
        "mvsa-single-8": "val",
        "mvsa-single-9": "test",
    }
    assert given_out.left_out == {"mvsa-single-10": "not in protocol file"}
    assert given_out.info.name == "file"
    assert given_out.info.settings["file"] == "mine.csv"
    with pytest.raises(UserError, match="3 ids, and 1 of them"):
        assign(f"file:{path}", samples[1:], dataset="x")
    partial = assign(f"file:{path}", samples[1:], dataset="x", allow_missing=True)
    assert partial.info.name == "file-partial"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "include 'id' and 'split'"),
        ("7,train\n", "include 'id' and 'split'"),
        ("id,split\n", "no lines below"),
        ("id,split\n7,training set\n", "line 2: id '7', split 'training set'"),
        ("id,split\n7\n", "line 2: id '7', split ''"),
        ("id,split\n7,train\n7,test\n", "line 3: id '7' is repeated"),
        ("id\tsplit\n7,train\n", "line 2"),
        ("id,split\n7,\xe9\n", "is not UTF-8"),
    ],
)
def test_files_that_are_no_split(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        assign(f"file:{path}", [sample("7")], dataset="x")
    with pytest.raises(UserError, match="cannot be read"):
        assign(f"file:{tmp_path}/absent.csv", [sample("7")], dataset="x")


def test_every_protocol_has_a_line_of_help() -> None:
    assert list(PROTOCOLS)[0] == "clean"
    assert all(PROTOCOLS.values())
