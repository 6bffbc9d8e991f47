"""The made-up data set: its labels, its variety, and what each part of it tells."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raw import digests, rejected
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from mmsa.data.manifest import load_manifest
from shards.__main__ import main
from shards.example import Example
from shards.label_rules import fuse
from shards.sources import get_source
from shards.synthetic import label_pairs

NUM_SAMPLES = 2000


def synthetic(out: Path, *options: str) -> int:
    return main(["synthetic", str(out), "--quiet", *options])


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "raw"
    assert synthetic(out, "--samples", str(NUM_SAMPLES), "--seed", "3") == 0
    return out


def examples_in(raw: Path) -> list[Example]:
    items = get_source("mvsa-single").open_raw(raw).items
    return [item for item in items if isinstance(item, Example)]


@pytest.fixture(scope="module")
def examples(raw: Path) -> list[Example]:
    return examples_in(raw)


def test_the_layout(raw: Path) -> None:
    labels = (raw / "labelResultAll.txt").read_bytes()
    assert labels.startswith(b"ID\ttext,image\r\n1\t")
    assert labels.count(b"\r\n") == labels.count(b"\n") == NUM_SAMPLES + 1
    assert sorted(path.name for path in raw.iterdir()) == ["data", "labelResultAll.txt"]
    assert len(list((raw / "data").iterdir())) == 2 * NUM_SAMPLES
    assert (raw / "data" / "1.txt").read_bytes().endswith(b"\r\n")
    with Image.open(raw / "data" / "1.jpg") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")


def test_shares_of_the_pairs() -> None:
    counts = Counter(label_pairs(1000, seed=0, plain=False))
    assert counts == {  # thousandths; 115.2 and 134.4 rounded by largest remainder
        ("positive", "positive"): 115,
        ("positive", "neutral"): 135,
        ("neutral", "positive"): 135,
        ("negative", "negative"): 115,
        ("negative", "neutral"): 134,
        ("neutral", "negative"): 134,
        ("neutral", "neutral"): 192,
        ("positive", "negative"): 20,
        ("negative", "positive"): 20,
    }


def test_plain_labels_are_in_thirds_after_fusion() -> None:
    counts = Counter(fuse(*pair) for pair in label_pairs(1000, seed=0, plain=True))
    assert counts == {"positive": 320, "negative": 320, "neutral": 320, None: 40}


def test_no_two_texts_or_pictures_are_equal(raw: Path) -> None:
    for suffix in ("txt", "jpg"):
        contents = {path.read_bytes() for path in (raw / "data").glob(f"*.{suffix}")}
        assert len(contents) == NUM_SAMPLES
    pixels = set()
    for path in (raw / "data").glob("*.jpg"):
        with Image.open(path) as picture:
            pixels.add(hashlib.sha256(picture.tobytes()).digest())
    assert len(pixels) == NUM_SAMPLES


def test_texts_are_like_tweets(examples: list[Example]) -> None:
    texts = [example.text for example in examples]
    assert max(len(text) for text in texts) <= 140
    for piece in ("RT @", "#", "http://t.co/", "\u5317\u4eac"):
        assert sum(piece in text for text in texts) >= 10, piece
    words = CountVectorizer().fit(texts).vocabulary_
    assert len(words) > 500


def test_pictures_vary_in_size_and_shape(examples: list[Example]) -> None:
    sizes = set()
    for example in examples[:200]:
        with Image.open(example.image_path) as picture:
            sizes.add(picture.size)
    assert len(sizes) > 150
    sides = [side for size in sizes for side in size]
    assert min(sides) >= 96
    assert max(sides) <= 320
    assert min(width / height for width, height in sizes) < 0.7
    assert max(width / height for width, height in sizes) > 1.5


def test_the_words_tell_the_text_label_and_only_part_of_the_fused_one(
    examples: list[Example],
) -> None:
    counts = CountVectorizer().fit_transform([example.text for example in examples])
    for name, low, high in (("text_label", 0.97, 1.0), ("label", 0.6, 0.8)):
        accuracy = _held_out_accuracy(counts, [getattr(e, name) for e in examples])
        assert low <= accuracy <= high, name


def test_the_colours_tell_most_of_the_image_label(examples: list[Example]) -> None:
    features = []
    for example in examples:
        with Image.open(io.BytesIO(example.image_path.read_bytes())) as picture:
            pixels = np.asarray(picture.resize((16, 16))) / 255
        features.append(np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))]))
    table = np.stack(features)
    for name, low, high in (("image_label", 0.9, 1.0), ("label", 0.55, 0.8)):
        accuracy = _held_out_accuracy(table, [getattr(e, name) for e in examples])
        assert low <= accuracy <= high, name


def test_plain_inputs_tell_nothing(tmp_path: Path) -> None:
    assert synthetic(tmp_path / "raw", "--samples", "900", "--plain") == 0
    plain = examples_in(tmp_path / "raw")
    counts = CountVectorizer().fit_transform([example.text for example in plain])
    accuracy = _held_out_accuracy(counts, [example.label for example in plain])
    # 432 held out: the 99.9 % interval around the chance rate of 1/3 is 0.26 to 0.41
    assert 0.26 <= accuracy <= 0.41


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert synthetic(tmp_path / name, "--samples", "40", "--seed", seed) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    different = digests(tmp_path / "c")
    assert all(different[name] != digest for name, digest in digests(tmp_path / "a").items())


def test_it_packs(tmp_path: Path) -> None:
    assert synthetic(tmp_path / "raw", "--samples", "100") == 0
    arguments = ["pack", "mvsa-single", str(tmp_path / "raw"), str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 0
    assert load_manifest(tmp_path / "out").source["dropped"] == {"labels conflict": 4}
    assert len(rejected(tmp_path / "out")) == 4


def test_wrong_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic(tmp_path / "raw", "--samples", "0") == 2
    assert "--samples 0" in capsys.readouterr().err
    assert synthetic(tmp_path / "raw", "--samples", "1", "--seed", "-1") == 2
    assert "--seed -1" in capsys.readouterr().err
    assert synthetic(tmp_path, "--samples", "1") == 2
    assert "already exists" in capsys.readouterr().err


def _held_out_accuracy(features: np.ndarray, labels: list[str]) -> float:
    """Of a logistic regression fitted to the first half, on the second."""
    half = len(labels) // 2
    model = LogisticRegression(max_iter=1000).fit(features[:half], labels[:half])
    return float(model.score(features[half:], labels[half:]))
