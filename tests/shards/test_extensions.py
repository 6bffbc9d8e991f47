"""A source of one's own, in a module that `--import` names, through the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raw import jpeg

from mmsa.errors import UserError
from shards.sources import SOURCES, Source, register_source

ROOT = Path(__file__).parents[2]

MODULE = '''
from shards.example import Example, RawData, Reason, Rejected
from shards.sources import Source, SourceSettings, clean_text, register_source

@register_source
class Reviews(Source):
    """Lines of stars, a tab and a text; 1.jpg belongs to the first line."""

    name = "reviews"
    help = "reviews.tsv and N.jpg"

    def read(self, raw, settings: SourceSettings) -> RawData:
        lines = (raw / "reviews.tsv").read_text(encoding="utf-8").splitlines()

        def items():
            for number, line in enumerate(lines, 1):
                stars, _, text = line.partition("\\t")
                if stars not in "12345":
                    yield Rejected(str(number), Reason.UNKNOWN_LABEL, stars)
                    continue
                text = clean_text(text, settings, detail=f"line {number}")
                label = "good" if stars > "3" else "bad"
                image = raw / f"{number}.jpg"
                yield Example(f"reviews-{number}", str(number), "reviews", text, image, label)

        return RawData(len(lines), items(), ("bad", "good"), "reviews", "given")
'''


def test_a_name_is_registered_once() -> None:
    mine = type("Mine", (Source,), {"name": "table", "help": ""})
    with pytest.raises(
        UserError, match=r"source 'table' is registered twice: by shards\.sources\.table\.Table"
    ):
        register_source(mine)
    again = SOURCES["table"]
    assert register_source(again) is again  # its module was imported a second time
    assert SOURCES["table"] is again


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A module `own.reviews` and 30 raw reviews, of which one has no stars."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "reviews.py").write_text(MODULE)
    (tmp_path / "raw").mkdir()
    lines = [f"{1 + n % 5}\treview number {n} by @someone" for n in range(29)] + ["x\tno stars"]
    (tmp_path / "raw" / "reviews.tsv").write_text("\n".join(lines), encoding="utf-8")
    for number in range(1, 31):
        (tmp_path / "raw" / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path


def shards(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shards", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_source_of_ones_own(folder: Path) -> None:
    packing = ("pack", "reviews", "raw", "out", "--normalize", "mentions", "--protocol", "random")
    done = shards(folder, "--import", "own.reviews", *packing)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["classes"] == ["bad", "good"]
    assert manifest["source"]["dropped"] == {"unknown label": 1}
    assert manifest["source"]["facts"] == {"normalize": ["mentions"]}
    assert sum(split["num_samples"] for split in manifest["splits"].values()) == 29

    unknown = shards(folder, *packing)
    assert unknown.returncode == 2
    assert "unknown source 'reviews'; known: " in unknown.stderr
    assert "--import MODULE" in unknown.stderr
    listed = shards(folder, "pack", "--import", "own.reviews", "--help-sources")
    assert "reviews         reviews.tsv and N.jpg\n" in listed.stdout
    assert "mvsa-single" in listed.stdout


def test_it_takes_the_options_of_its_settings_alone(folder: Path) -> None:
    refused = shards(
        *(folder, "pack", "--import", "own.reviews", "reviews", "raw", "out"),
        *("--classes", "good,bad", "--id-column", "id"),
    )
    assert refused.returncode == 2
    assert "reading: 2 problems" in refused.stderr
    takes = "does not apply to the source reviews, which takes --normalize"
    assert f"--classes {takes}" in refused.stderr
    assert f"--id-column {takes}" in refused.stderr


def test_a_module_that_is_not_there(folder: Path) -> None:
    refused = shards(folder, "--import", "own.absent", "protocols")
    assert refused.returncode == 2
    assert "own.absent" in refused.stderr
    assert "Traceback" not in refused.stderr
