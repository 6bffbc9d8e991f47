"""Token ids: padding, truncation, and the tokenizer that counts words."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmsa.data.text import TextTokenizer, load_tokenizer, word_tokenizer
from mmsa.errors import UserError

# the 3, cat 2, dog 2; "a", "cafe" (without its accent) and "!" once each
TEXTS = ["the cat", "the dog", "The DOG a", "cat café!"]
PAD, UNK, CLS, SEP = 0, 1, 2, 3


def words(num_words: int = 100, max_tokens: int = 8) -> TextTokenizer:
    return word_tokenizer(TEXTS, num_words, max_tokens)


def vocabulary(tokenizer: TextTokenizer) -> list[str]:
    ids = tokenizer.hugging_face.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def test_words_stand_by_count_then_alphabet() -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert vocabulary(words()) == [*special, "the", "cat", "dog", "!", "a", "cafe"]
    assert vocabulary(words(2)) == [*special, "the", "cat"]
    assert words(2).vocab_size == 6
    assert vocabulary(word_tokenizer(reversed(TEXTS), 100, 8)) == vocabulary(words())


def test_a_batch_is_padded_to_its_longest() -> None:
    ids, mask = words()(["the cat", "dog", "the dog a cat"])
    assert ids.tolist() == [
        [CLS, 4, 5, SEP, PAD, PAD],
        [CLS, 6, SEP, PAD, PAD, PAD],
        [CLS, 4, 6, 8, 5, SEP],
    ]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert (str(ids.dtype), str(mask.dtype)) == ("torch.int64", "torch.int64")
    short, _ = words()(["dog"])
    assert short.tolist() == [[CLS, 6, SEP]]  # nothing of an earlier batch's length is left


def test_a_length_is_a_multiple_and_at_most_what_texts_may_have() -> None:
    tokenizer = words(max_tokens=12)
    texts = ["the cat", "dog"]  # of 4 and 3 tokens
    ids, mask = tokenizer(texts)
    padded = tokenizer(texts, pad_to=8)
    assert [one.shape for one in padded] == [(2, 8), (2, 8)]
    assert padded[0][:, :4].equal(ids)
    assert padded[1][:, :4].equal(mask)
    assert not padded[1][:, 4:].any()
    assert (padded[0][:, 4:] == PAD).all()
    assert tokenizer(["cat " * 6], pad_to=8)[0].shape == (1, 8)  # exactly
    assert tokenizer(["cat " * 7], pad_to=8)[0].shape == (1, 12)  # the next would be 16
    assert tokenizer(["cat " * 40], pad_to=5)[0].shape == (1, 12)


def test_truncation_keeps_the_special_tokens() -> None:
    ids, mask = words(max_tokens=4)(["the cat the dog a", "a"])
    assert ids.tolist() == [[CLS, 4, 5, SEP], [CLS, 8, SEP, PAD]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


def test_unknown_words_and_empty_texts() -> None:
    ids, _ = words()(["the zebra", "", "日本"])
    assert ids.tolist()[0] == [CLS, 4, UNK, SEP]
    assert ids.tolist()[1] == [CLS, SEP, PAD, PAD]
    assert ids.tolist()[2][:2] == [CLS, UNK]


def test_case_and_accents_do_not_matter() -> None:
    ids, _ = words()(["CAFÉ", "cafe"])
    assert ids.tolist() == [[CLS, 9, SEP], [CLS, 9, SEP]]


def test_texts_that_spell_special_tokens() -> None:
    tokenizer = word_tokenizer(["[PAD] [CLS] pad cls [pad]"], 100, 12)
    # Counted as the words inside the brackets; the special tokens keep their places.
    assert vocabulary(tokenizer) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[", "]", "pad", "cls"]
    ids, mask = tokenizer(["pad [SEP] cls"])
    assert ids.tolist() == [[CLS, 6, SEP, 7, SEP]]  # as every BERT tokenizer reads it
    assert mask.tolist() == [[1, 1, 1, 1, 1]]


def test_saving_and_loading_gives_equal_ids(tmp_path: Path) -> None:
    tokenizer = words()
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(str(tmp_path), 8)
    texts = [*TEXTS, "the zebra", "", "[SEP] a", "the " * 20]
    before, after = tokenizer(texts), loaded(texts)
    assert after[0].tolist() == before[0].tolist()
    assert after[1].tolist() == before[1].tolist()
    assert loaded.vocab_size == tokenizer.vocab_size
    # The limit of one use does not travel with the files.
    longer, _ = load_tokenizer(str(tmp_path), 30)(["the " * 20])
    assert longer.shape == (1, 22)


def test_a_text_is_cut_on_the_side_that_the_tokenizer_says(tmp_path: Path) -> None:
    words().save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "truncation_side": "left"}), encoding="utf-8")
    text = "the cat sat on the mat the end"
    left, right = load_tokenizer(str(tmp_path), 5), load_tokenizer(str(tmp_path), 5, "right")
    assert (left.truncation_side, right.truncation_side) == ("left", "right")
    whole = load_tokenizer(str(tmp_path), 30)([text])[0][0].tolist()
    assert left([text])[0].tolist() == [[CLS, *whole[-4:-1], SEP]]
    assert right([text])[0].tolist() == [[CLS, *whole[1:4], SEP]]  # as an export of before


def test_an_export_keeps_the_side_of_its_tokenizer(tmp_path: Path) -> None:
    words().save(tmp_path / "own")
    config = tmp_path / "own" / "tokenizer_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "truncation_side": "left"}), encoding="utf-8")
    load_tokenizer(str(tmp_path / "own"), 5).save(tmp_path / "export")
    assert load_tokenizer(str(tmp_path / "export"), 5).truncation_side == "left"


def test_loading_compares_and_leaves_the_files_as_they_are(tmp_path: Path) -> None:
    made = words().hugging_face
    made.backend_tokenizer.enable_truncation(7, stride=1)
    made.backend_tokenizer.enable_padding(length=9, pad_token="[PAD]")
    made.save_pretrained(str(tmp_path / "own"))
    load_tokenizer(str(tmp_path / "own"), 5).save(tmp_path / "again")
    before, after = (tmp_path / name / "tokenizer.json" for name in ("own", "again"))
    assert after.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("change", "words_of_error"),
    [
        (lambda ids: ids[:-1], r"of a short test text it makes \d+ ids .* differ from id \d+ on"),
        (lambda ids: [*ids[:2], 0, *ids[3:]], "differ from id 2 on"),
        (lambda ids: 1 / 0, "does not take a text .ZeroDivisionError"),
    ],
)
def test_a_tokenizer_with_a_trick_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, words_of_error: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    words().save(tmp_path)
    plain = PreTrainedTokenizerFast.__call__

    def tricky(self: Any, *arguments: Any, **options: Any) -> Any:
        return {"input_ids": change(plain(self, *arguments, **options)["input_ids"])}

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", tricky)
    with pytest.raises(UserError, match=f"the tokenizer of {tmp_path}.*{words_of_error}"):
        load_tokenizer(str(tmp_path), 12)


def test_a_tokenizer_travels_by_pickle() -> None:
    tokenizer = words(max_tokens=4)
    twin = pickle.loads(pickle.dumps(tokenizer))
    assert twin(TEXTS)[0].tolist() == tokenizer(TEXTS)[0].tolist()


def test_no_texts_make_a_tokenizer_of_unknown_words() -> None:
    ids, _ = word_tokenizer([], 100, 8)(["the cat"])
    assert ids.tolist() == [[CLS, UNK, UNK, SEP]]


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """One token per byte and no special token around a text, as GPT-2 has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate([*alphabet, *special.values()])}
    backend = Tokenizer(models.BPE(ids, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_without_a_padding_token_the_end_token_pads_under_the_mask(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(byte_tokenizer(eos_token="<end>"), 8)
    end = tokenizer.hugging_face.eos_token_id
    ids, mask = tokenizer(["ab", "abcd", ""])
    assert ids[0].tolist() == [*ids[1, :2].tolist(), end, end]
    # Nothing at all would be nothing to attend to: one end token, which is no padding.
    assert ids[2].tolist() == [end] * 4
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert [one.tolist() for one in tokenizer([""])] == [[[end]], [[1]]]
    tokenizer.save(tmp_path)
    assert load_tokenizer(str(tmp_path), 8)(["ab", "abcd", ""])[0].tolist() == ids.tolist()


def test_a_padding_token_pads_beside_an_end_token() -> None:
    tokenizer = TextTokenizer(byte_tokenizer(eos_token="<end>", pad_token="<pad>"), 8)
    pad, end = tokenizer.hugging_face.pad_token_id, tokenizer.hugging_face.eos_token_id
    ids, mask = tokenizer(["ab", ""])
    assert (ids[1].tolist(), mask[1].tolist()) == ([end, pad], [1, 0])


def test_a_tokenizer_with_neither_padding_nor_end_is_refused() -> None:
    with pytest.raises(UserError, match="has neither a padding token nor an end token; set one"):
        TextTokenizer(byte_tokenizer(), 8)


def test_a_place_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing is not a directory; give one that exists"):
        load_tokenizer(str(tmp_path / "missing"), 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        load_tokenizer(str(tmp_path / "empty"), 8)
