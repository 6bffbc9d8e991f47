"""`--keep-missing`: samples without a text or an image, from raw data to verified shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset as wds
from raw import digests, jpeg, raw_tree, rejected

from mmsa.data.index_file import read_index
from mmsa.data.manifest import load_manifest
from mmsa.data.modality_labels import modality_labels
from mmsa.data.reader import SplitReader
from mmsa.labels import LABEL_NAMES, class_map
from shards.__main__ import main
from shards.reports.info import describe

QUICK = ["--workers", "1", "--ratios", "1:0:0", "--protocol", "random"]
ROWS = [
    {"text": "both of them here", "image": "1.jpg", "label": "sad"},
    {"text": "a text alone", "image": None, "label": "sad"},
    {"text": "another text alone", "image": "NaN", "label": "happy"},
    {"text": " ", "image": "2.jpg", "label": "happy"},
    {"text": "", "image": "", "label": "happy"},
    {"text": "its file is lost", "image": "lost.jpg", "label": "sad"},
]


def table(folder: Path, rows: list[dict[str, str | None]] = ROWS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("1.jpg", "2.jpg"):
        (folder / name).write_bytes(jpeg(int(name[0])))
    path = folder / "tweets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pack(raw: Path, out: Path, *options: str, source: str = "table") -> int:
    return main(["pack", source, str(raw), str(out), *QUICK, *options])


def stored(out: Path, tar: str = "train-00000.tar") -> dict[str, list[str]]:
    """Source id -> the extensions of its members, read by the stock library."""
    found = {}
    for sample in wds.WebDataset(str(out / tar), shardshuffle=False):
        members = sorted(name for name in sample if not name.startswith("_"))
        found[json.loads(sample["json"])["source_id"]] = members
    return found


def test_rows_that_lack_a_modality_are_kept_and_say_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pack(table(tmp_path / "raw"), out, "--keep-missing", "text,image", "--quiet") == 0
    assert stored(out) == {
        "1": ["jpg", "json", "txt"],
        "2": ["json", "txt"],
        "3": ["json", "txt"],
        "4": ["jpg", "json"],
    }
    manifest = load_manifest(out)
    assert manifest.version == 2
    assert manifest.splits["train"].missing == {"text": 1, "image": 2}
    assert manifest.missing() == {"text": 1, "image": 2}
    shard = manifest.splits["train"].shards[0]
    assert sorted(read_index(out, shard)["missing"].tolist()) == [0, 1, 2, 2]
    assert (out / shard.index).read_bytes()[8:12] == b"\2\0\0\0"  # the index's version
    # A path to no file is an error of the data, and a row without either has nothing to learn from.
    assert [(line["source_id"], line["reason"]) for line in rejected(out)] == [
        ("5", "neither text nor image"),
        ("6", "missing image"),
    ]
    assert main(["verify", str(out), "--quiet"]) == 0


@pytest.mark.parametrize(("kept", "ids"), [("image", "123"), ("text", "14")])
def test_one_modality_may_be_kept_alone(tmp_path: Path, kept: str, ids: str) -> None:
    out = tmp_path / "out"
    code = pack(table(tmp_path / "raw"), out, "--keep-missing", kept, "--allow-dropped", "--quiet")
    assert code == 0
    assert sorted(stored(out)) == list(ids)


def test_where_nothing_is_missing_the_option_changes_no_byte(tmp_path: Path) -> None:
    raw = table(tmp_path / "raw", [ROWS[0], {**ROWS[0], "text": "other", "label": "happy"}])
    assert pack(raw, tmp_path / "plain", "--quiet") == 0
    assert pack(raw, tmp_path / "kept", "--keep-missing", "text,image", "--quiet") == 0
    assert digests(tmp_path / "plain") == digests(tmp_path / "kept")
    content = (tmp_path / "plain" / "manifest.json").read_text()
    assert json.loads(content)["version"] == 1
    assert '"missing"' not in content


def test_a_table_without_an_image_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "texts.csv"
    rows = "".join(f"day number {number},{['happy', 'sad'][number % 2]}\n" for number in range(12))
    raw.write_text(f"tweet,label\n{rows}")
    assert pack(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "has no column for the image" in said
    assert "--keep-missing image" in said
    assert pack(raw, tmp_path / "out", "--keep-missing", "image", "--ratios", "1:1:1") == 0
    shown = capsys.readouterr().out
    assert "without image" in shown
    assert "model.fusion.name=text_only" in shown
    assert main(["verify", str(tmp_path / "out"), "--quiet"]) == 0
    raw.write_text("words,label\nfine day,happy\n")
    assert pack(raw, tmp_path / "no", "--keep-missing", "text,image") == 2
    assert "neither a column for the text (text, tweet, " in capsys.readouterr().err


def test_a_folder_of_texts_and_images_apart(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name in ("happy", "sad"):
        (raw / name).mkdir(parents=True)
        (raw / name / "text.txt").write_text(f"{name} all day")
        (raw / name / "picture.jpg").write_bytes(jpeg(len(name)))
        (raw / name / "blank.txt").write_text("\n")
    out = tmp_path / "out"
    code = pack(raw, out, "--keep-missing", "text,image", "--quiet", source="folder")
    assert code == 0
    assert set(map(tuple, stored(out).values())) == {("jpg", "json"), ("json", "txt")}
    assert {line["reason"] for line in rejected(out)} == {"neither text nor image"}


def test_parts_of_a_set_with_missing_ones_are_joined(tmp_path: Path) -> None:
    raw, keep = table(tmp_path / "raw"), ["--keep-missing", "text,image", "--quiet"]
    assert pack(raw, tmp_path / "whole", *keep) == 0
    assert pack(raw, tmp_path / "out", *keep, "--part", "1/1") == 0
    assert main(["merge", str(tmp_path / "out"), "--workers", "1", "--quiet"]) == 0
    assert digests(tmp_path / "whole") == digests(tmp_path / "out")


def test_reports_count_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert pack(table(tmp_path / "raw"), out, "--keep-missing", "text,image", "--quiet") == 0
    facts = describe(out, load_manifest(out))
    assert facts["splits"]["train"]["missing"] == {"text": 1, "image": 2}
    # Of the texts and images that there are: an absent one has no length and no width.
    assert facts["distributions"]["text length, characters"]["quantiles"]["0"] == 12
    assert facts["distributions"]["picture width, pixels"]["quantiles"]["0"] == 40
    capsys.readouterr()
    assert main(["info", str(out), "--html", str(tmp_path / "page.html")]) == 0
    assert "without image" in capsys.readouterr().out
    assert "without text" in (tmp_path / "page.html").read_text()
    card = (out / "README.md").read_text()
    assert "| kept without image | 2 |" in card
    assert "A sample without text or image lacks that member." in card


@pytest.mark.parametrize(
    ("source", "value", "said"),
    [
        ("table", "video", "--keep-missing video must be text, image, or text,image"),
        ("table", ",", "--keep-missing  must be text, image, or text,image"),
        ("mvsa-single", "label", "--keep-missing label must be text, image, or text,image"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, value: str, said: str
) -> None:
    raw = table(tmp_path / "raw")
    assert pack(raw, tmp_path / "out", "--keep-missing", value, source=source) == 2
    assert said in capsys.readouterr().err


def test_a_set_that_rejects_them_says_how_to_keep_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = table(tmp_path / "raw", [ROWS[0], ROWS[1], ROWS[2], {**ROWS[1], "text": "third"}])
    assert pack(raw, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "Samples that have no image are kept with --keep-missing image" in said


def test_tars_of_others_may_lack_a_modality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with wds.TarWriter(str(tmp_path / "train-0.tar")) as tar:
        for key, members in (
            ("a", {"jpg": jpeg(1), "txt": "both", "cls": "sad"}),
            ("b", {"jpg": jpeg(2), "cls": "happy"}),
            ("c", {"txt": "no picture", "cls": "sad"}),
            ("d", {"jpg": jpeg(3), "txt": "", "cls": "happy"}),
            ("e", {"jpg": jpeg(4), "txt": " \n", "cls": "sad"}),
        ):
            content = {name: v.encode() if isinstance(v, str) else v for name, v in members.items()}
            tar.write({"__key__": key, **content})
    assert main(["index", str(tmp_path), "--quiet"]) == 2
    assert "--keep-missing keeps samples without" in capsys.readouterr().err
    assert main(["index", str(tmp_path), "--keep-missing", "text,image", "--quiet"]) == 0
    manifest = load_manifest(tmp_path)
    assert manifest.missing() == {"text": 3, "image": 1}
    records = read_index(tmp_path, manifest.splits["train"].shards[0])
    assert records["missing"].tolist() == [0, 1, 2, 1, 1]
    assert main(["verify", str(tmp_path), "--quiet"]) == 0


def mvsa(raw: Path) -> Path:
    """1 is whole; 2 and 3 have no image; 4 has blanks for a text, 5 no text file; 6 has neither;
    the image of 7 is empty."""
    raw_tree(raw, ["positive,neutral"] * 7)
    for name in ("2.jpg", "3.jpg", "5.txt", "6.jpg", "6.txt"):
        (raw / "data" / name).unlink()
    (raw / "data" / "4.txt").write_bytes(b" \r\n")
    (raw / "data" / "7.jpg").write_bytes(b"")
    return raw


def test_mvsa_keeps_ids_that_lack_one_and_their_labels(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--keep-missing", "text,image", "--quiet"]
    assert pack(mvsa(tmp_path / "raw"), out, *options, source="mvsa-single") == 0
    assert stored(out) == {
        "1": ["jpg", "json", "txt"],
        **dict.fromkeys("23", ["json", "txt"]),
        **dict.fromkeys("45", ["jpg", "json"]),
    }
    assert load_manifest(out).missing() == {"text": 2, "image": 2}
    assert [(line["source_id"], line["reason"]) for line in rejected(out)] == [
        ("6", "neither text nor image"),
        ("7", "empty image file"),
    ]
    classes = class_map(LABEL_NAMES, None)
    reader = SplitReader(str(out), load_manifest(out), "train", classes)
    samples = [reader.read(*place) for place in reader.places()]
    assert {sample.meta["label"] for sample in samples} == {"positive"}
    # A modality that a sample lacks has no label of its own to be trained on.
    own = {sample.meta["source_id"]: modality_labels(sample, classes) for sample in samples}
    assert own == {"1": [2, 1], **dict.fromkeys("23", [2, -1]), **dict.fromkeys("45", [-1, 1])}
    assert main(["verify", str(out), "--quiet"]) == 0


def test_the_enriched_sheet_keeps_rows_that_lack_one(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in (1, 3):
        folder = raw / "Images" / "Positive"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    rows = ["1,both,positive", "2,a text alone,neutral", "3, ,positive", "4,,positive"]
    (raw / "LabeledText.csv").write_text("\n".join(["ID,Text,Label", *rows]) + "\n")
    assert pack(raw, out, "--keep-missing", "text,image", "--quiet", source="mvsa-enriched") == 0
    assert stored(out) == {
        "1": ["jpg", "json", "txt"],
        "2": ["json", "txt"],
        "3": ["jpg", "json"],
    }
    assert [(line["source_id"], line["reason"]) for line in rejected(out)] == [
        ("4", "neither text nor image")
    ]


def test_mvsa_rejects_them_without_the_option_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = mvsa(tmp_path / "raw")
    assert pack(raw, tmp_path / "out", "--quiet", source="mvsa-single") == 0
    assert list(stored(tmp_path / "out")) == ["1"]
    reasons = {line["source_id"]: line["reason"] for line in rejected(tmp_path / "out")}
    assert reasons == {
        **dict.fromkeys("23", "missing image"),
        "4": "empty text",
        **dict.fromkeys("56", "missing text"),
        "7": "empty image file",
    }
    for name in "1457":
        (raw / "data" / f"{name}.jpg").unlink()
    assert pack(raw, tmp_path / "no", source="mvsa-single") == 2
    assert "--keep-missing text,image" in capsys.readouterr().err
