"""The limits of twins on the real data: what docs/splits.md says is joined, by id."""

from pathlib import Path

import pytest
from PIL import Image

from shards.duplicates.images import image_hash, image_pairs
from shards.duplicates.texts import text_pairs


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "mvsa-single" / "data"


@pytest.mark.parametrize(
    ("one", "other", "twins"),
    [
        ("931", "1575", True),  # compressed again
        ("2784", "4521", True),  # scaled
        ("3322", "4952", True),  # one advertisement in two colours
        ("2904", "2916", True),  # cards of one design
        ("2388", "4091", True),  # one advertisement in two colours, the farthest that are joined
        ("5018", "5020", False),  # two shirts of one cut, the nearest that are not
        ("3042", "3043", False),  # two cars before one wall
        ("2622", "3954", False),  # two screenshots of one program
    ],
)
def test_pictures_near_the_limit(folder: Path, one: str, other: str, twins: bool) -> None:
    prints = []
    for source_id in (one, other):
        with Image.open(folder / f"{source_id}.jpg") as picture:
            prints.append(image_hash(picture))
    assert list(image_pairs(prints)) == ([(0, 1)] if twins else [])


def test_texts_of_the_whole_folder(folder: Path) -> None:
    texts = [path.read_bytes().decode("gb18030") for path in sorted(folder.glob("*.txt"))]
    assert len(texts) == 3964
    root = list(range(len(texts)))

    def find(position: int) -> int:
        while root[position] != position:
            position = root[position]
        return position

    for one, other in text_pairs(texts):
        root[find(other)] = find(one)
    groups: dict[int, int] = {}
    for position in range(len(texts)):
        groups[find(position)] = groups.get(find(position), 0) + 1
    sizes = sorted((size for size in groups.values() if size > 1), reverse=True)
    assert (len(sizes), sum(sizes), sizes[:3]) == (164, 413, [22, 21, 10])
