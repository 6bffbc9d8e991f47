import pytest

from shards.label_rules import fuse


@pytest.mark.parametrize(
    ("text_label", "image_label", "fused"),
    [
        ("positive", "positive", "positive"),
        ("positive", "neutral", "positive"),
        ("positive", "negative", None),
        ("neutral", "positive", "positive"),
        ("neutral", "neutral", "neutral"),
        ("neutral", "negative", "negative"),
        ("negative", "positive", None),
        ("negative", "neutral", "negative"),
        ("negative", "negative", "negative"),
    ],
)
def test_all_nine_pairs(text_label: str, image_label: str, fused: str | None) -> None:
    assert fuse(text_label, image_label) == fused


def test_the_counts_of_the_whole_label_file() -> None:
    # (text, image) pairs of the 4,869 lines of MVSA-Single, and what is published for them.
    pairs = {
        ("positive", "positive"): 1398,
        ("positive", "neutral"): 255,
        ("positive", "negative"): 78,
        ("neutral", "positive"): 1030,
        ("neutral", "neutral"): 470,
        ("neutral", "negative"): 421,
        ("negative", "positive"): 280,
        ("negative", "neutral"): 213,
        ("negative", "negative"): 724,
    }
    totals: dict[str | None, int] = {}
    for pair, number in pairs.items():
        totals[fuse(*pair)] = totals.get(fuse(*pair), 0) + number
    assert totals == {"positive": 2683, "neutral": 470, "negative": 1358, None: 358}
