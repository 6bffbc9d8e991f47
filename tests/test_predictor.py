"""Prediction takes what packing takes, in every form, and refuses the rest in one sentence."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import mmsa
from mmsa.errors import UserError
from mmsa.export import FACTS_NAME
from mmsa.foundation.digests import DIGESTS_NAME
from mmsa.predictor import Predictor
from tests.exports import write_tiny_export

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny model of both modalities with fresh weights."""
    return write_tiny_export(tmp_path_factory.mktemp("export") / "best")


@pytest.fixture(scope="module")
def predictor(export: Path) -> Predictor:
    return mmsa.load(export, device="cpu")


@pytest.fixture
def copied(export: Path, tmp_path: Path) -> Path:
    """A copy to damage, as early versions wrote exports: without digests, which find any change."""
    copy = Path(shutil.copytree(export, tmp_path / "copied"))
    (copy / DIGESTS_NAME).unlink()
    facts = json.loads((copy / FACTS_NAME).read_text())
    del facts["digests"]
    (copy / FACTS_NAME).write_text(json.dumps(facts))
    return copy


def probabilities(predictor: Predictor, *images: Any) -> list[list[float]]:
    found = predictor.predict(["what a day"] * len(images), images).probabilities
    assert np.allclose(found.sum(axis=1), 1)
    return found.tolist()  # type: ignore[no-any-return]


def refused(predictor: Predictor, texts: Any, images: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        predictor.predict(texts, images, **{"on_error": "raise", **options})
    message = str(caught.value)
    assert "\n" not in message
    return message


def structured(mode: str, width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8), "RGBA")
    coarse = coarse.resize((width, height))
    if mode == "P":
        return coarse.convert("RGB").quantize(16)
    return coarse.convert(mode)


FORMS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("RGB", "L", "P"),
    "BMP": ("RGB", "L", "P", "1"),
}


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from([(form, mode) for form, modes in FORMS.items() for mode in modes]),
    orientation=st.integers(1, 8),
    width=st.integers(1, 200),
    height=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_one_picture_is_predicted_alike_in_every_form(
    predictor: Predictor,
    tmp_path_factory: pytest.TempPathFactory,
    form: tuple[str, str],
    orientation: int,
    width: int,
    height: int,
    seed: int,
) -> None:
    """As a path, as bytes, opened by Pillow, decoded by Pillow; a 200-pixel JPEG is not decoded at
    a half for a short side of 64."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with_exif = form[0] in ("PNG", "JPEG", "WEBP")
    path = tmp_path_factory.mktemp("picture") / "picture"
    picture = structured(form[1], width, height, seed)
    picture.save(path, form[0], **({"exif": exif} if with_exif else {}))
    decoded = Image.open(path)
    decoded.load()
    content = path.read_bytes()
    inputs = [path, str(path), content, bytearray(content), Image.open(path), decoded]
    found = probabilities(predictor, *inputs, decoded)  # the last again: it was not changed
    assert all(row == found[0] for row in found)


def test_an_image_that_pillow_has_not_decoded_is_its_file(
    predictor: Predictor, tmp_path: Path
) -> None:
    """A large JPEG is decoded at a quarter; and Pillow can still decode it afterwards."""
    structured("RGB", 900, 700, 1).save(tmp_path / "a.jpg")
    opened = Image.open(tmp_path / "a.jpg")
    first, second = probabilities(predictor, tmp_path / "a.jpg", opened)
    assert first == second
    assert np.array_equal(np.asarray(opened), np.asarray(Image.open(tmp_path / "a.jpg")))
    third = probabilities(predictor, opened)[0]  # decoded now: at full size
    assert np.allclose(third, first, atol=1e-3)
    frames = [structured("L", 30, 30, seed) for seed in (2, 3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    moving = Image.open(tmp_path / "a.gif")
    start = probabilities(predictor, moving)
    assert start == probabilities(predictor, tmp_path / "a.gif")
    moving.seek(1)
    assert probabilities(predictor, moving) != start
    changed = Image.open(tmp_path / "a.jpg")
    changed.paste((255, 255, 255), (0, 0, 900, 700))  # the pixels count, not the file
    white = Image.new("RGB", (900, 700), (255, 255, 255))
    assert probabilities(predictor, changed) == probabilities(predictor, white)


def test_images_that_packing_rejects_are_refused_by_row(
    predictor: Predictor, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    structured("RGB", 20, 20, 0).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-40])
    os.mkfifo(tmp_path / "pipe")
    closed = Image.open(good)
    closed.close()
    large = io.BytesIO()
    Image.new("1", (9000, 8000)).save(large, "PNG")
    for bad, words in (
        (None, "was not trained for a missing image. Give one, or train with"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32 with the shape (4, 4, 3); expected"),
        (np.zeros((4, 4, 2), np.uint8), "an array of uint8 with the shape (4, 4, 2); expected"),
        (np.zeros((0, 4, 3), np.uint8), "picture of 4x0 has no pixels"),
        (3, "expected a path, bytes, a Pillow image or an array, found 3"),
        (b"", "empty image file"),
        (b"no image", "its content is text; accepted are JPEG"),
        (Image.new("RGB", (0, 0)), "picture of 0x0 has no pixels"),
        (Image.new("RGB", (0, 9)), "picture of 0x9 has no pixels"),
        (Image.new("F", (9, 9)), "mode F has no fixed range"),
        (Image.new("1", (9000, 8000)), "is over the limit of 64,000,000"),
        (large.getvalue(), "is over the limit of 64,000,000"),
        (closed, "cannot be converted"),
        (tmp_path / "cut.png", "truncated image"),
        (Image.open(tmp_path / "cut.png"), "truncated image"),
        (tmp_path / "absent.png", "does not exist"),
        (f"{good}\0", "is not a file name"),
        (f"{good}\udc80", "does not exist"),
        ("\ud800", "is not a file name"),
        (tmp_path, "it is a directory"),
        (tmp_path / "pipe", "it is a named pipe"),
        ("/dev/zero", "it is a device"),
        (good / "inner", "Not a directory"),
    ):
        message = refused(predictor, ["a", "b"], [good, bad])
        assert message.startswith("image 1: ")
        assert words in message


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(), max_size=40))
def test_any_text_is_predicted_or_refused(predictor: Predictor, text: str) -> None:
    image = structured("RGB", 8, 8, 0)
    if not text.strip() or re.search("[\ud800-\udfff]", text):
        assert refused(predictor, ["fine", text], [image] * 2).startswith("text 1: ")
    else:
        assert np.isfinite(predictor.predict([text], [image]).probabilities).all()


def test_texts_that_packing_rejects_are_refused_by_row(predictor: Predictor) -> None:
    image = structured("RGB", 8, 8, 0)
    assert "text of 65,537 characters is over the limit of 65,536" in refused(
        predictor, ["x" * 65_537], [image]
    )
    assert predictor.predict(["x" * 65_536], [image]).labels
    assert "half a surrogate pair at character 1" in refused(predictor, ["a\udcff"], [image])
    assert "text 0: it is None, and the model in" in refused(predictor, [None], [image])
    assert "text 0 is not a string: nan" in refused(predictor, [float("nan")], [image])


def test_one_bad_row_does_not_fail_the_others(predictor: Predictor) -> None:
    images = [structured("RGB", 30, 30, seed) for seed in range(4)]
    texts = ["what a day", "not my day", "day", " "]
    given = [images[0], b"no image", images[2], images[3]]
    found = predictor.predict(texts, given, batch_size=2, embeddings=True)
    alone = predictor.predict(["what a day", "day"], [images[0], images[2]], embeddings=True)
    assert (
        found.errors[1]
        == "image 1: its content is text; accepted are JPEG, PNG, GIF, WebP, BMP, AVIF and TIFF"
    )
    assert found.errors == [None, found.errors[1], None, "text 3: empty text"]
    assert found.labels == [alone.labels[0], None, alone.labels[1], None]
    assert (len(found), found.num_errors) == (4, 2)
    np.testing.assert_allclose(found.probabilities[[0, 2]], alone.probabilities, rtol=1e-5)
    assert np.isnan(found.probabilities[[1, 3]]).all()
    np.testing.assert_array_equal(found.confidence[[0, 2]], found.probabilities[[0, 2]].max(axis=1))
    assert found.embeddings is not None
    assert alone.embeddings is not None
    assert found.embeddings.keys() == {"text", "image"}
    for name, rows in found.embeddings.items():
        np.testing.assert_allclose(rows[[0, 2]], alone.embeddings[name], rtol=1e-4, atol=1e-6)
        assert np.isnan(rows[[1, 3]]).all()
        assert np.ptp(rows[[0, 2]], axis=0).any()
    assert alone.embeddings["text"].shape[0] == 2
    assert predictor.predict(texts[:1], images[:1]).embeddings is None
    lines = repr(found).splitlines()
    assert lines[0] == "<Result: 4 rows, 2 with an error>"
    assert lines[1].startswith("  0: negative 0.")
    assert lines[2].startswith("  1: error: image 1")
    assert "text and image -> negative, neutral, positive; step 1, on cpu" in repr(predictor)
    nothing = predictor.predict([""], images[:1], embeddings=True)
    assert (nothing.labels, nothing.num_errors) == ([None], 1)
    assert "on_error is 'skip'" in refused(predictor, texts, images, on_error="skip")


def test_an_array_is_the_image_that_it_holds(predictor: Predictor) -> None:
    for mode in ("RGB", "RGBA", "L"):
        image = structured(mode, 70, 90, 1)
        pixels = np.asarray(image)
        first, *others = probabilities(predictor, image, pixels, np.asfortranarray(pixels))
        assert all(other == first for other in others)
    stack = np.stack([np.asarray(structured("RGB", 30, 30, seed)) for seed in (1, 2)])
    assert len(predictor.predict(["a", "b"], stack)) == 2
    assert "give images as a list" in refused(predictor, ["a"], stack[0])


def test_results_become_a_data_frame(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    result = predictor.predict(["day", ""], [structured("RGB", 30, 30, 1)] * 2)
    names = [f"probability_{name}" for name in predictor.label_names]
    columns = result.columns()
    assert list(columns) == ["label", "confidence", *names, "error"]
    assert [columns[name][0] for name in names] == result.probabilities[0].tolist()
    assert (columns["label"], columns["error"]) == (result.labels, [None, "text 1: empty text"])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)  # as where it is not installed
        with pytest.raises(UserError, match="needs pandas; install it: pip install pandas"):
            result.to_pandas()
    pytest.importorskip("pandas")
    frame = result.to_pandas()
    assert list(frame.columns) == list(columns)
    assert (frame["label"][0], frame["label"].isna().tolist()) == (result.labels[0], [False, True])
    assert frame["error"].isna().tolist() == [True, False]


class Column:
    """As a column of a data frame: iterable, its rows counted from elsewhere than 0."""

    def __init__(self, *rows: str) -> None:
        self.rows = dict(enumerate(rows, start=7))

    def __getitem__(self, row: int) -> str:
        return self.rows[row]

    def __iter__(self) -> Any:
        return iter(self.rows.values())


def test_rows_may_come_in_any_order_that_is_one(predictor: Predictor) -> None:
    texts = ["what a day", "not my day", "day"]
    images = [structured("RGB", 30, 30, seed) for seed in range(3)]
    expected = predictor.predict(texts, images)
    for given_texts in (tuple(texts), np.array(texts), Column(*texts), iter(texts)):
        found = predictor.predict(given_texts, (one for one in images), batch_size=np.int64(2))
        assert found.labels == expected.labels
        assert np.allclose(found.probabilities, expected.probabilities)
    for wrong in ("what a day", b"x", 3, {"what a day": 1}, {"a"}, UserDict(a=1), None):
        assert "give texts as a list" in refused(predictor, wrong, images)
    for wrong in ("a.jpg", Path("a.jpg"), images[0], b"", 3.5, np.array(1), None):
        assert "give images as a list" in refused(predictor, texts, wrong)
    assert "found 3 texts and 2 images" in refused(predictor, texts, images[:2])
    assert predictor.predict([], []).probabilities.shape == (0, 3)
    for wrong in (-1, 0, 2.0, "8", True, None):
        assert "batch_size is" in refused(predictor, texts, images, batch_size=wrong)


def test_what_cannot_be_loaded(copied: Path) -> None:
    for path, words in (
        (3, "give the path of an export"),
        (copied / "absent", "is not a run directory"),
        ("a\0b", "is not a run directory"),
    ):
        with pytest.raises(UserError, match=words):
            mmsa.load(path, device="cpu")  # type: ignore[arg-type]
    for device in ("gpu", "cuda:99", 3.5):
        with pytest.raises(UserError, match="cannot be used"):
            mmsa.load(copied, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"label_names": ["a", "b", "a"]}', "lists the classes a, b, a; expected two or more"),
        ('{"label_names": ["a"]}', "lists the classes a; expected two or more"),
        ('{"label_names": []}', "lists the classes none"),
        ('{"label_names": "abc"}', "has no list of class names"),
        ('{"label_names": [1, 2, 3]}', "has no list of class names"),
        ('{"label_names": ["a", "", "b"]}', "has no list of class names"),
        ("{}", "has no list of class names"),
        ("[]", "does not contain a JSON object"),
        ("[" * 5000, "cannot be read"),
        ('{"label_names": ["a", "b"]}', r"is \(3,"),
    ],
)
def test_odd_labels(copied: Path, content: str, words: str) -> None:
    (copied / "labels.json").write_text(content)
    with pytest.raises(UserError, match=words):
        mmsa.load(copied, device="cpu")


def test_odd_preprocessing(copied: Path) -> None:
    path = copied / "preprocessing.json"
    whole = json.loads(path.read_text())
    image = [structured("RGB", 8, 8, 0)]
    for change, words in (
        ({"image": None}, "reads images, and its preprocessing.json has no settings"),
        ({"max_tokens": None}, "reads texts, and its preprocessing.json has no settings"),
        ({"packed_quality": 0}, "packed_quality"),
        ({"packed_short_side_px": None}, "image short side is None"),
        ({"packed_normalize": ["emoji"]}, "no normalization 'emoji' of texts"),
    ):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(UserError, match=words):
            mmsa.load(copied, device="cpu").predict(["a"], image)
    for content in (b"\xff", b"[" * 5000, b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="preprocessing.json"):
            mmsa.load(copied, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer(copied: Path, name: str) -> None:
    path = copied / "tokenizer" / name
    whole = path.read_bytes()
    for content in (b"", b"5", b"[]", b"{", b"\xff", whole[: len(whole) // 2], b'{"version": 5}'):
        path.write_bytes(content)
        if name == "tokenizer_config.json" and content == b'{"version": 5}':
            continue  # all its keys are optional
        with pytest.raises(UserError, match="tokenizer cannot be|tokenizer of .* padding"):
            mmsa.load(copied, device="cpu")


def test_weights_of_no_use(copied: Path) -> None:
    path = copied / "model.safetensors"
    weights = load_file(path)
    name = next(n for n, one in weights.items() if n.startswith("fusion") and len(one) == 3)
    image = [structured("RGB", 8, 8, 0)] * 2
    for value in (float("nan"), float("inf")):
        damaged = weights[name].clone()
        damaged[0] = value
        save_file({**weights, name: damaged}, path)
        message = refused(mmsa.load(copied, device="cpu"), ["what a day", "b"], image)
        assert "logits that are not finite for 2 of 2 rows, the first is row 0" in message
    for kind, words in ((torch.int8, "integers"), (torch.complex64, "complex numbers")):
        try:
            save_file({**weights, name: weights[name].to(kind)}, path)
        except KeyError:  # this version of safetensors has no complex numbers
            continue
        with pytest.raises(UserError, match=f"{name} holds {words}, the model's are floating"):
            mmsa.load(copied, device="cpu")
    save_file({name: one.half() if one.is_floating_point() else one
               for name, one in weights.items()}, path)  # fmt: skip
    assert mmsa.load(copied, device="cpu").predict(["a"], image[:1]).labels
